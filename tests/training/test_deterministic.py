"""On a GPU a run uses kernels that give the same bits each time; where there are none it goes on, and says so."""

import pytest
import torch
from contract.members import SMALL
from safetensors.torch import load_file

from bigmodel import tasks
from bigmodel.errors import ConfigError
from bigmodel.training import deterministic
from bigmodel.training.display import in_words
from bigmodel.training.events import read
from bigmodel.training.fit import fit


def put() -> None:
    """torch has no deterministic kernel for it, on a CPU neither."""
    torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))


def test_no_other_kernel_inside():
    put()
    with pytest.raises(RuntimeError) as caught, deterministic.kernels("cuda"):
        put()
    assert deterministic.lacking(caught.value) == "put_ does not have a deterministic implementation"
    put()  # as before
    with deterministic.kernels("cuda", wanted=False), deterministic.kernels("cpu"):
        put()
    assert not deterministic.lacking(RuntimeError("out of memory"))


@pytest.fixture
def lacking(monkeypatch):
    """A task with an operation that has no such kernel, on a CPU that minds as a GPU does."""
    kernels, task = deterministic.kernels, tasks.get("tabular-regression")
    plain = task.loss

    def loss(*arguments):
        put()
        return plain(*arguments)

    monkeypatch.setattr(deterministic, "kernels", lambda device, wanted=True: kernels("cuda", wanted))
    monkeypatch.setattr(task, "loss", loss)


def test_a_run_without_such_a_kernel_goes_on_and_says_so(tmp_path, lacking):
    run = fit(SMALL["tabular-regression"](tmp_path))
    assert run.info["decisions"]["nondeterministic"] == "put_ does not have a deterministic implementation"
    told = [in_words(event) for event in read(run.events) if event["kind"] == "decision"]
    assert told[0] == "another run may differ in its last digits: put_ does not have a deterministic implementation"
    assert not torch.are_deterministic_algorithms_enabled()


def test_but_not_one_that_is_to_be_exact(tmp_path, lacking):
    with pytest.raises(ConfigError, match="train.exact: put_ does not have .*train.device=cpu"):
        fit(SMALL["tabular-regression"](tmp_path, "train.exact=true"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("task", SMALL)
def test_the_same_bits_again_on_a_gpu(task, tmp_path):
    runs = [fit(SMALL[task](tmp_path, "train.device=cuda", f"output={tmp_path / name}")) for name in "ab"]
    one, other = (load_file(run.model / "model.safetensors") for run in runs)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
