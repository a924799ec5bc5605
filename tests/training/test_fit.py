"""fit(): the same weights however the work is shared out or cut up, and what a run leaves behind."""

import hashlib
import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bigmodel.data.prepare import prepare
from bigmodel.errors import CheckpointError, ConfigError, DataError, ResourceError, TrainingError
from bigmodel.experiment import Experiment
from bigmodel.training.events import read
from bigmodel.training.fit import fit
from bigmodel.training.run import Run
from bigmodel.training.trainer import Trainer, Worker


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def steps(run: Any) -> list[dict[str, Any]]:
    return [event for event in read(run.events) if event["kind"] == "step"]


def bits(run: Any) -> list[tuple[Any, ...]]:
    return [(event["step"], event["loss"], event["lr"], event["tokens"], event["padded"]) for event in steps(run)]


AUGMENTED = ("data.augment.token_dropout=0.2", "data.augment.swap=0.1", "train.average=0.9", "train.accumulate=2")


def test_the_same_experiment_gives_the_same_bits(experiment, tmp_path):
    first = fit(experiment(*AUGMENTED, f"output={tmp_path / 'a'}"))
    second = fit(experiment(*AUGMENTED, f"output={tmp_path / 'b'}"))
    assert sha256(first.model / "model.safetensors") == sha256(second.model / "model.safetensors")
    assert bits(first) == bits(second)


@pytest.mark.parametrize("exact", ["false", "true"])
def test_samples_augmented_ahead_are_the_same(experiment, tmp_path, monkeypatch, exact):
    read, found = Trainer.read, {}
    for cores in (1, 2):
        threads = set()
        monkeypatch.setattr("bigmodel.training.fit.available_cores", lambda cores=cores: cores)
        monkeypatch.setattr(Trainer, "read", lambda *a, t=threads: t.add(threading.current_thread().name) or read(*a))
        found[cores] = bits(fit(experiment(*AUGMENTED, f"train.exact={exact}", f"output={tmp_path / str(cores)}")))
        assert ("augmentation" in threads) == (cores == 2)
    assert found[1] == found[2]


def test_another_seed_gives_other_weights(experiment, tmp_path):
    first = fit(experiment(f"output={tmp_path / 'a'}"))
    second = fit(experiment(f"output={tmp_path / 'b'}", "train.seed=1"))
    assert sha256(first.model / "model.safetensors") != sha256(second.model / "model.safetensors")


def test_one_worker_of_ray_gives_the_bits_of_this_process_and_two_the_same_order(experiment, tmp_path, ray_here):
    here = fit(experiment(*AUGMENTED, f"output={tmp_path / 'a'}"))
    one = fit(experiment(*AUGMENTED, f"output={tmp_path / 'b'}", "train.workers=1"))
    assert sha256(here.model / "model.safetensors") == sha256(one.model / "model.safetensors")
    assert bits(here) == bits(one)

    plain = ("model.dropout=0", "optim.type=gd", "optim.lr=0.1")  # dropout is drawn by each worker for itself
    here = fit(experiment(*plain, f"output={tmp_path / 'c'}"))
    two = fit(experiment(*plain, f"output={tmp_path / 'd'}", "train.workers=2"))
    assert [event["tokens"] for event in steps(here)] == [event["tokens"] for event in steps(two)]
    assert [event["loss"] for event in steps(two)] == pytest.approx([event["loss"] for event in steps(here)], rel=1e-4)
    for name, tensor in weights(here).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_last_batch_smaller_than_the_workers_leaves_none_waiting(experiment, ray_here):
    prepared = prepare(experiment())
    size = prepared.size("train")
    run = fit(experiment("train.workers=2", f"train.batch_size={size - 1}", "train.epochs=2", "model.dropout=0"))
    assert [event["samples"] for event in steps(run)].count(1) == 2
    assert all(event["loss"] == event["loss"] for event in steps(run))


def test_accumulation_changes_nothing_but_rounding(experiment, tmp_path):
    plain = ("model.dropout=0", "optim.type=gd", "optim.lr=0.1")
    whole = fit(experiment(*plain, f"output={tmp_path / 'a'}"))
    pieces = fit(experiment(*plain, f"output={tmp_path / 'b'}", "train.accumulate=3"))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(pieces)[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_step_is_that_of_torch_on_the_whole_batch(experiment):
    """One step against the plain formula: mean loss, clipped gradient, p <- p - lr g."""
    wanted = experiment("optim.type=gd", "optim.lr=0.5", "optim.warmup=0", "model.dropout=0", "optim.clip=0.1")
    trainer = Trainer(wanted, prepare(wanted), Worker())
    trainer.wrap()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    ids = trainer.order.batch(0)
    batch = trainer.batch(ids, 0)
    loss = trainer.model(**batch).loss
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    happened = trainer.step()
    assert happened["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert norm > 0.1
    for (name, p), gradient in zip(trainer.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * gradient * 0.1 / norm, rtol=1e-3, atol=1e-6)


def test_every_sample_is_seen_once_an_epoch(experiment):
    wanted = experiment("train.epochs=3")
    trainer = Trainer(wanted, prepare(wanted), Worker())
    for epoch in range(3):
        first = epoch * trainer.order.steps_per_epoch
        seen = Counter(int(i) for s in range(trainer.order.steps_per_epoch) for i in trainer.order.batch(first + s))
        assert seen == Counter(range(len(trainer.samples)))


def test_the_events_tell_every_step(experiment):
    run = fit(experiment("train.epochs=2"))
    told = steps(run)
    assert [event["step"] for event in told] == list(range(1, len(told) + 1))
    assert {"loss", "lr", "samples", "samples_per_s", "tokens", "padded", "epoch"} <= told[0].keys()
    assert all(event["padded"] >= event["tokens"] > 0 for event in told)
    validations = [event for event in read(run.events) if event["kind"] == "validation"]
    assert len(validations) == 2 and {"loss", "accuracy", "macro_f1"} <= validations[0].keys()


def test_the_best_weights_are_kept_not_the_last(experiment):
    run = fit(experiment("train.epochs=6", "optim.lr=0.05", "train.validate_every=3"))
    validations = [event for event in read(run.events) if event["kind"] == "validation"]
    best = max(validations, key=lambda event: (event["accuracy"], -event["step"]))
    assert run.info["progress"]["best_step"] == best["step"]
    assert run.info["metrics"]["accuracy"] == best["accuracy"]
    assert json.loads((run.model / "bigmodel.json").read_text())["metrics"]["accuracy"] == best["accuracy"]


def test_training_ends_early_where_nothing_improves(experiment):
    run = fit(experiment("train.epochs=40", "train.early_stopping=2", "optim.lr=1e-9", "optim.warmup=0"))
    assert [event["kind"] for event in read(run.events)].count("early_stop") == 1
    assert len([event for event in read(run.events) if event["kind"] == "validation"]) == 3


def test_a_finished_run_is_not_trained_again_and_fresh_starts_over(experiment):
    run = fit(experiment())
    stamp = (run.model / "model.safetensors").stat().st_mtime_ns
    said: list[dict[str, Any]] = []
    again = fit(experiment(), listener=said.append)
    assert (again.model / "model.safetensors").stat().st_mtime_ns == stamp
    assert any("not trained again" in event.get("line", "") and "--fresh" in event["line"] for event in said)
    assert not any(event["kind"] == "step" for event in said)
    fresh = fit(experiment(), fresh=True)
    assert (fresh.model / "model.safetensors").stat().st_mtime_ns > stamp


def test_another_experiment_in_the_same_folder_is_refused_with_the_difference(experiment):
    fit(experiment())
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 -> 0\.002") as refused:
        fit(experiment("optim.lr=2e-3"))
    assert "--fresh" in str(refused.value)


def test_changed_data_in_the_same_folder_is_refused(experiment, reviews, tmp_path):
    fit(experiment())
    reviews(tmp_path / "reviews.csv", 201, seed=5)
    with pytest.raises(ConfigError, match="content of the data files"):
        fit(experiment())


def test_changed_data_that_is_refused_leaves_a_finished_run_as_it_is(experiment, reviews, tmp_path):
    source = reviews(tmp_path / "reviews.csv", 200)
    with open(source, "a") as file:
        file.write("a text without a label\n")
    run = fit(experiment())
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert before[run.path / "quarantine.jsonl"].count(b"\n") == 1
    for changed in ("one,two,three\n" * 2, "one,two,three\n" * 100):
        reviews(source, 200)
        with open(source, "a") as file:
            file.write(changed)
        with pytest.raises(ConfigError, match="content of the data files"):
            fit(experiment())
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_who_does_the_work_may_change(experiment):
    fit(experiment())
    fit(experiment("train.keep=5", "train.retries=0"))


def test_the_precision_is_measured_once_and_repeated(experiment, tmp_path):
    def textcnn(*changes: str) -> Any:
        """Computed in bf16 on any processor, if slowly."""
        return experiment("train.precision=auto", *changes).model_copy(update={"model": {"type": "textcnn"}})

    run = fit(textcnn())
    [decision] = [event for event in read(run.events) if event["kind"] == "decision"]
    assert decision["choice"] in ("fp32", "bf16") and decision["seconds"].keys() == {"fp32", "bf16"}
    assert run.info["decisions"]["precision"] == decision["choice"] == run.info["progress"]["precision"]

    other = {"fp32": "bf16", "bf16": "fp32"}[decision["choice"]]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text(
        json.dumps(
            {
                "fingerprint": run.info["fingerprint"],
                "started": "before",
                "decisions": {"precision": other},
                "state": "interrupted",
            }
        )
    )
    (tmp_path / "b" / "experiment.yaml").write_text((run.path / "experiment.yaml").read_text())
    again = fit(textcnn(f"output={tmp_path / 'b'}"))
    assert again.info["progress"]["precision"] == other


def test_a_loss_that_is_no_number_ends_the_run_with_advice(experiment):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ .*optim\.lr") as failed:
        fit(experiment("optim.type=gd", "optim.lr=1e38", "optim.clip=0", "optim.warmup=0", "train.epochs=20"))
    assert "--fresh" in str(failed.value)


def test_a_loss_that_is_no_number_is_said_by_a_worker_too_and_not_tried_again(experiment, ray_here):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step"):
        fit(
            experiment(
                *("train.workers=1", "optim.type=gd", "optim.lr=1e38", "optim.clip=0", "optim.warmup=0"),
                "train.epochs=20",
            )
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.workers=64"], "train.workers is 64.*the cluster has 4 CPUs"),
        (["train.workers=5..8"], "train.workers is 5..8; the cluster has 4 CPUs. Ask for at most 4 workers"),
        (
            ["train.workers=3", "train.threads=2"],
            "of 2 threads each; the cluster has 4 CPUs. Ask for at most 2 workers, lower train.threads to at most 1",
        ),
        (["train.workers=2", "train.threads=9"], "has 4 CPUs. Lower train.threads to at most 2, or add nodes"),
        (["train.workers=1", "train.device=cuda"], "the cluster has 0 GPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused_before_starting(experiment, ray_here, changes, words):
    with pytest.raises(ResourceError, match=words):
        fit(experiment(*changes))


def test_a_gpu_that_is_not_there_is_refused(experiment):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ResourceError, match="finds no GPU here"):
        fit(experiment("train.device=cuda"))


def test_the_run_can_be_read_by_a_person(experiment):
    run = fit(experiment())
    assert yaml.safe_load((run.path / "experiment.yaml").read_text())["optim"]["lr"] == 1e-3
    assert {"state", "fingerprint", "started", "progress", "metrics"} <= run.info.keys()
    assert (run.path / "quarantine.jsonl").exists()


def test_without_validation_rows_the_last_weights_are_kept(experiment):
    run = fit(experiment("data.split.valid=0", "train.epochs=2"))
    assert run.info["progress"]["best_step"] == run.info["progress"]["step"]
    assert (run.model / "golden.jsonl").exists()


def test_a_mistake_with_fresh_deletes_nothing(experiment):
    run = fit(experiment())
    with pytest.raises(DataError, match="no such file"):
        fit(experiment("data.train=nowhere.csv"), fresh=True)
    assert (run.model / "model.safetensors").exists() and fit(experiment()).finished


def test_a_folder_that_no_run_made_is_left_alone(experiment, tmp_path):
    thesis = tmp_path / "run" / "model" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ResourceError, match="holds model that no run made"):
            fit(experiment(), fresh=fresh)
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("name", ["experiment.yaml", "events.jsonl", "report.json", "run.json", "quarantine.jsonl"])
def test_a_file_that_no_run_made_is_left_alone(experiment, tmp_path, name):
    own = tmp_path / "run" / name
    own.parent.mkdir()
    own.write_text("{}")
    for fresh in (False, True):
        with pytest.raises(ResourceError, match=f"run holds {name} that no run made. Name another output"):
            fit(experiment(), fresh=fresh)
    assert own.read_text() == "{}"


def test_an_output_that_is_a_file_or_a_link_to_nothing_is_named(experiment, tmp_path):
    (tmp_path / "run").symlink_to("gone")
    with pytest.raises(ResourceError, match="the output folder is a link to gone, which does not exist. Name another"):
        fit(experiment())
    with pytest.raises(ResourceError, match="the output folder is a file. Name another output"):
        fit(experiment(f"output={tmp_path / 'reviews.csv'}"))


def test_a_run_that_has_saved_nothing_is_replaced_by_another(experiment, reviews, tmp_path):
    with pytest.raises(TrainingError):
        fit(experiment("optim.type=gd", "optim.lr=1e38", "optim.clip=0", "optim.warmup=0"))
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    reviews(tmp_path / "reviews.csv", 210)
    run = fit(experiment("optim.lr=1e-2"))
    assert run.finished and Experiment.stored(run.path / "experiment.yaml").optim.lr == 1e-2
    assert [event["step"] for event in read(run.events) if event["kind"] == "step"][0] == 1, "of this run alone"


def test_a_stop_in_the_first_preparation_leaves_the_folder_free(experiment, tmp_path):
    def stop(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(experiment(), listener=stop)
    fit(experiment("optim.lr=2e-3"))
    with pytest.raises(ConfigError, match="another experiment"):
        fit(experiment("optim.lr=3e-3"))


@pytest.mark.parametrize("name", ["run.json", "experiment.yaml"])
def test_a_damaged_run_is_one_message_and_fresh_starts_over(experiment, name):
    run = fit(experiment())
    (run.path / name).write_text("{")
    with pytest.raises(CheckpointError, match="--fresh starts over"):
        fit(experiment())
    assert fit(experiment(), fresh=True).finished


def test_a_refusal_leaves_an_interrupted_run_interrupted(experiment):
    run = fit(experiment())
    run.write(state="interrupted")
    with pytest.raises(ConfigError):
        fit(experiment("optim.lr=2e-3"))
    assert Run(run.path).info["state"] == "interrupted"
