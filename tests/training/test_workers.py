"""Every task on two workers of Ray Train: the bits that this process alone would have learnt. test_exact.py has the
same without Ray."""

import pytest
import torch
from contract.members import SMALL
from safetensors.torch import load_file

from bigmodel.training.events import read
from bigmodel.training.fit import fit


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", SMALL)
def test_two_workers_learn_what_this_process_learns(task, tmp_path, ray_here):
    changes = ("train.epochs=2", "train.batch_size=7", "train.validate_every=4", "train.exact=true")
    runs, told = [], []
    for workers in (0, 2):
        run = fit(SMALL[task](tmp_path, *changes, f"train.workers={workers}", f"output={tmp_path / str(workers)}"))
        runs.append(run)
        events = [event for event in read(run.events) if event["kind"] in ("step", "validation")]
        told.append([[event.get(name) for name in ("step", "loss", "samples", "tokens")] for event in events])
    alone, two = (load_file(run.model / "model.safetensors") for run in runs)
    assert told[0] == told[1] and len(told[0]) > 5
    assert runs[0].info["metrics"] == runs[1].info["metrics"]
    assert all(torch.equal(two[name], tensor) for name, tensor in alone.items())
