"""A run that meets a batch it cannot use, or too little memory, goes on, says what it did, and does it again alike."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.members import SMALL, tiny_bert
from safetensors.torch import load_file, save_file
from training.test_exact import on, same_bits, work
from training.test_interruption import command, sha256, steps, wait_for_step
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from bigmodel.data.prepare import prepare
from bigmodel.errors import ResourceError, TrainingError
from bigmodel.experiment import Experiment, TokenizerConfig, TrainConfig, change
from bigmodel.tasks import exact_tokenizer
from bigmodel.training import healing, steplog
from bigmodel.training.checkpoint import Checkpoints
from bigmodel.training.events import read
from bigmodel.training.fit import fit, fit_in_parts
from bigmodel.training.saver import Saver
from bigmodel.training.trainer import Trainer, Worker

BAD_LINE = 42


@pytest.fixture
def poisoned(experiment: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Experiment]:
    """Fine-tuning a checkpoint in which the vector of one token is damaged; one training row has that token."""
    folder = tmp_path / "bert"
    tiny_bert(folder)
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("b")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][token] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def make(*changes: str) -> Experiment:
        made = experiment("data.split.test=0", *changes)
        with open(made.data.train, encoding="utf-8", newline="") as file:
            rows = [
                ["text", "label"],
                *([f"gag {i} gag", "good"] for i in range(60)),
                *([f"lal {i}", "bad"] for i in range(60)),
            ]
        rows[BAD_LINE - 1][0] += " b"
        with open(made.data.train, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        return made.model_copy(update={"model": {"pretrained": str(folder)}})

    return make


def healed(run: Path) -> list[dict[str, Any]]:
    return [event for event in read(run / "events.jsonl") if event["kind"] == "healing"]


def test_a_batch_whose_loss_is_no_number_is_passed_over_and_its_rows_are_named(poisoned):
    run = fit(poisoned("train.epochs=2", "train.checkpoint_every=3"))
    made = run.info["decisions"]["healing"]
    assert [decision["what"] for decision in made] == ["skip", "skip"], "once an epoch"
    assert all([file, BAD_LINE] in d["rows"] for d in made for file, _ in d["rows"][:1])
    assert "the loss is nan" in made[0]["why"] and len(made[0]["rows"]) <= 16
    assert {decision["step"] for decision in made}.isdisjoint(step for step, _ in steps(run.path))
    total = run.info["progress"]["step"]
    assert len(steps(run.path)) == total - 2 and all(loss == loss for _, loss in steps(run.path))
    assert healed(run.path)[-1]["step"] == made[-1]["step"]


def stories(folder: Path, name: str) -> Experiment:
    """A checkpoint in which the vector of one token is damaged, and documents; one of them has that token."""
    processor = exact_tokenizer.train(["a story"], "byte", TokenizerConfig(), 24)
    ends = {"bos_token_id": processor.bos_token_id, "eos_token_id": processor.eos_token_id}
    shape = {"n_positions": 24, "n_embd": 8, "n_layer": 1, "n_head": 1, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(processor), **shape, **ends))
    with torch.no_grad():
        model.get_input_embeddings().weight[processor.convert_tokens_to_ids("Z")] = torch.inf
    model.save_pretrained(folder / "gpt2")
    processor.save_pretrained(folder / "gpt2")
    texts = [f"story {i}" + " Z" * (i == BAD_LINE - 1) for i in range(60)]
    raw = "----\n".join(f"{text}\nThe End\n" for text in texts)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / name).write_text(raw if name.endswith(".txt") else lines)
    return change(
        {
            "task": "text-generation",
            "data": {"train": str(folder / name), "separator": "----", "split": {"valid": 0, "test": 0}},
            "model": {"pretrained": str(folder / "gpt2")},
            "train": {"epochs": 1, "batch_size": 1, "threads": 1, "precision": "fp32"},
            "output": str(folder / "run"),
        },
        [],
    )


@pytest.mark.parametrize(("name", "lines_each"), [("stories.jsonl", 1), ("stories.txt", 3)])
def test_of_packed_documents_those_are_named_that_the_batch_shows(name, lines_each, tmp_path):
    run = fit(stories(tmp_path, name))
    made = run.info["decisions"]["healing"]
    assert [event["rows"] for event in healed(run.path)] == [decision["rows"] for decision in made] and made
    for decision in made:
        assert [str(tmp_path / name), (BAD_LINE - 1) * lines_each + 1] in decision["rows"]
        assert len(decision["rows"]) <= 4, "a window of 24 bytes"


@pytest.mark.parametrize("task", SMALL)
def test_every_task_names_the_rows_of_a_step(task, tmp_path):
    wanted = SMALL[task](tmp_path)
    trainer = Trainer(wanted, prepare(wanted), Worker())
    places = trainer.places(0)
    assert len({line for _, line in places}) == len(places) > 4
    assert {file for file, _ in places} == {wanted.data.train} and all(0 < line <= 25 for _, line in places)


def test_it_ends_where_more_is_passed_over_than_may_be(poisoned):
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step \d+ .*passed over before: steps \d+\. Lower optim"
    ):
        fit(poisoned("train.epochs=3", "train.heal=1"))
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        fit(poisoned("train.heal=0"), fresh=True)


def test_the_rate_can_fall_with_each(poisoned):
    run = fit(poisoned("train.epochs=2", "train.heal_lr=0.5", "optim.schedule=constant", "optim.warmup=0"))
    rates = [event["lr"] for event in read(run.events) if event["kind"] == "step"]
    assert [rate for i, rate in enumerate(rates) if not i or rates[i - 1] != rate] == [1e-3, 5e-4, 2.5e-4]


def test_killed_after_it_the_run_ends_at_the_same_bits(poisoned, tmp_path):
    changes = ("train.epochs=3", "train.checkpoint_every=4", "model.hidden_dropout_prob=0.1")
    unbroken = fit(poisoned(*changes, f"output={tmp_path / 'unbroken'}"))
    first = unbroken.info["decisions"]["healing"][0]["step"]
    process = command(tmp_path, poisoned(*changes))
    wait_for_step(tmp_path / "run", first + 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = command(tmp_path, poisoned(*changes))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert sha256(tmp_path / "run") == sha256(unbroken.path) and steps(tmp_path / "run") == steps(unbroken.path)


def test_all_workers_go_back_together(poisoned, tmp_path):
    wanted = poisoned("train.epochs=2", "train.exact=true")
    alone, told = on(0, wanted, tmp_path)
    two, theirs = on(2, wanted, tmp_path)
    assert theirs == told and same_bits(alone, two)
    assert len(healed(tmp_path / "on 2")) == 2


def work_with_a_slow_disk(*given: Any) -> None:
    save = Checkpoints.save

    def slowly(self: Checkpoints, *saved: Any) -> None:
        time.sleep(0.3)
        save(self, *saved)

    Checkpoints.save = slowly  # type: ignore[method-assign]
    work(*given)


def test_all_workers_go_back_to_one_step_while_a_save_is_under_way(poisoned, tmp_path):
    wanted = poisoned("train.epochs=2", "train.exact=true", "train.checkpoint_every=1")
    alone, told = on(0, wanted, tmp_path)
    two, theirs = on(2, wanted, tmp_path, work_with_a_slow_disk)
    assert theirs == told and same_bits(alone, two)


def test_a_run_whose_every_batch_is_bad_has_no_model(poisoned):
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        fit(poisoned("train.epochs=1", "train.batch_size=60"))


def test_a_spike_is_measured_by_the_steps_before_it():
    spikes = healing.Spikes(3.0, [1.0] * 49)
    assert spikes(50.0) == "", "too few steps before it"
    assert spikes(2.9) == "" and spikes(3.1) == "the loss is 3.1, 3.1 times the median of 50 steps before"
    assert healing.Spikes(0.0, [1.0] * 50)(1e9) == ""


def test_short_of_memory_the_micro_batch_is_halved_and_the_batch_is_not(experiment, tmp_path):
    wanted = experiment(
        *("model.type=transformer", "model.hidden_size=64", "model.intermediate_size=8192"),
        *("data.split.test=0", "data.split.valid=0"),
        *("train.batch_size=160", "train.epochs=3", "train.checkpoint_every=1"),
    )  # fmt: skip
    tree = wanted.model_dump(mode="json")
    tree["model"] = {name: value for name, value in tree["model"].items() if name != "embedding_size"}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    code = """
import json, resource, sys
from bigmodel.experiment import Experiment
from bigmodel.training.fit import fit

def listen(event):
    if event["kind"] == "start" and not event["step"]:
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + 450_000_000, resource.RLIM_INFINITY))

fit(Experiment.model_validate(json.load(open("tree.json"))), listener=listen)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "run" / "run.json").read_text())["decisions"]["healing"]
    assert [decision["what"] for decision in made] == ["accumulate"] * len(made) and made
    assert [decision["to"] for decision in made] == [2 ** (i + 1) for i in range(len(made))]
    sizes = [event["samples"] for event in read(tmp_path / "run" / "events.jsonl") if event["kind"] == "step"]
    assert max(sizes) == 160 and len(sizes) == 6


def test_a_model_that_no_memory_holds_is_said(experiment):
    with pytest.raises(ResourceError, match=r"^out of memory: .*can't allocate memory.* Lower the size of the model"):
        fit(experiment("model.hidden_size=6000000"))


@pytest.mark.parametrize(("whose", "doing"), [(Saver, "_copy_of"), (Saver, "_copied"), (Checkpoints, "load")])
def test_short_of_memory_outside_of_a_step_it_says_so(experiment, monkeypatch, whose, doing):
    """Before the copies of a checkpoint, at one, and once the best weights are taken up."""

    def short(*given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(whose, doing, short)
    with pytest.raises(ResourceError, match=r"^out of memory: MemoryError\. The model, its optimiser's state and"):
        fit(experiment())


@pytest.mark.parametrize("exact", ["false", "true"])
def test_what_was_augmented_ahead_is_let_go_where_a_step_is_passed_over(poisoned, tmp_path, monkeypatch, exact):
    read, found = Trainer.read, {}
    for cores in (1, 2):
        monkeypatch.setattr("bigmodel.training.fit.available_cores", lambda cores=cores: cores)
        wanted = poisoned("train.epochs=2", "data.augment.swap=0.2", f"train.exact={exact}")
        ahead = []
        monkeypatch.setattr(Trainer, "read", lambda *a, ahead=ahead: ahead.append(is_ahead()) or read(*a))
        run = fit(wanted.model_copy(update={"output": str(tmp_path / str(cores))}))
        assert healed(run.path) and "augmentation" not in {thread.name for thread in threading.enumerate()}
        assert any(ahead[-2:]) == (cores == 2), "after what was passed over too"
        found[cores] = steps(run.path)
    assert found[1] == found[2]


def is_ahead() -> bool:
    return threading.current_thread().name == "augmentation"


def test_short_of_memory_ahead_it_is_the_step_the_samples_are_for(experiment, monkeypatch):
    monkeypatch.setattr("bigmodel.training.fit.available_cores", lambda: 2)
    read, refused = Trainer.read, []

    def short(self: Trainer, ids: Any, epoch: int) -> Any:
        if is_ahead() and self.progress.step == 4 and not refused:
            refused.append(self.progress.step + 2)  # four are taken, the fifth is under way
            raise MemoryError
        return read(self, ids, epoch)

    monkeypatch.setattr(Trainer, "read", short)
    run = fit(experiment("data.augment.swap=0.2", "train.checkpoint_every=1"))
    assert [(made["what"], made["step"]) for made in run.info["decisions"]["healing"]] == [("accumulate", *refused)]


def test_decisions_hold_from_their_step_on():
    train = TrainConfig(accumulate=2, heal_lr=0.5)
    made = [{"what": "skip", "step": 5}, {"what": "accumulate", "step": 7, "to": 4}]
    assert [healing.pieces(step, made, train) for step in (6, 7, 8)] == [2, 4, 4]
    assert [healing.rate(step, made, train) for step in (4, 5, 9)] == [1.0, 0.5, 0.5]
    assert [step for step in range(1, 9) if healing.skips(step, made)] == [5]


def test_a_checkpoint_is_never_of_weights_that_are_no_numbers(experiment, monkeypatch):
    """One batch's update ends in nan, each time it is taken, with a loss and a gradient that are numbers."""
    step = Trainer.step

    def diverges(self: Trainer) -> dict[str, Any]:
        happened = step(self)
        if self.progress.step == 6:
            self.trained[0].data[0] = torch.nan
        return happened

    monkeypatch.setattr(Trainer, "step", diverges)
    run = fit(experiment("train.checkpoint_every=1"))
    [made] = run.info["decisions"]["healing"]
    assert (made["what"], made["step"], made["why"]) == ("skip", 6, "the weights after it are no numbers")
    assert 6 not in [number for number, _ in steps(run.path)] and run.finished


def test_a_second_decision_about_a_step_is_told_too(experiment, monkeypatch):
    """With a checkpoint between the two, after which the events tell of the first."""
    step, short = Trainer.step, list[int]()

    def falls_short(self: Trainer) -> dict[str, Any]:
        if self.progress.step == 9 and len(short) < 2:
            short.append(10)
            raise healing.Unusable(10, "short", memory=True)
        monkeypatch.setattr(steplog, "CHECKPOINT_S", 0.0 if len(short) == 1 else 30.0)
        return step(self)

    monkeypatch.setattr(Trainer, "step", falls_short)
    monkeypatch.setattr(steplog, "FLUSH", 1)
    said: list[dict[str, Any]] = []
    run = fit(experiment("train.validate_every=100"), listener=said.append)
    made = [{"kind": "healing", **decision} for decision in run.info["decisions"]["healing"]]
    assert [decision["to"] for decision in made] == [2, 4]
    assert healed(run.path) == made == [event for event in said if event["kind"] == "healing"]


@pytest.mark.parametrize("clock", [0.0, 1e9])
def test_whose_weights_are_no_numbers_does_not_depend_on_when_a_checkpoint_is_due(experiment, monkeypatch, clock):
    """By the clock one is due after each look, or never. The step after it has a loss that is none."""
    monkeypatch.setattr(Trainer, "step", spoils(Trainer.step))
    monkeypatch.setattr(steplog, "CHECKPOINT_S", clock)
    run = fit(experiment())
    [made] = run.info["decisions"]["healing"]
    assert (made["what"], made["step"], made["why"]) == ("skip", 6, "the weights after it are no numbers")
    assert [number for number, _ in steps(run.path)] == [1, 2, 3, 4, 5, *range(7, run.info["progress"]["step"] + 1)]


def test_all_workers_look_again_which_step_spoilt_the_weights(experiment, tmp_path):
    wanted = experiment("train.exact=true")
    alone, told = on(1, wanted, tmp_path, work_that_diverges)
    two, theirs = on(2, wanted, tmp_path, work_that_diverges)
    assert theirs == told and same_bits(alone, two)
    assert 6 not in [dict(event)["step"] for event in told if dict(event)["kind"] == "step"]


def spoils(step: Callable[[Trainer], dict[str, Any]]) -> Callable[[Trainer], dict[str, Any]]:
    """A step that leaves no numbers in the weights, the sixth time, with a loss and a gradient that are numbers."""

    def spoilt(self: Trainer) -> dict[str, Any]:
        happened = step(self)
        if self.progress.step == 6:
            self.trained[0].data[:] = torch.inf
        return happened

    return spoilt


def work_that_diverges(*given: Any) -> None:
    Trainer.step = spoils(Trainer.step)  # type: ignore[method-assign]
    work(*given)


def test_a_spike_heals_and_is_one_again_after_an_interruption(experiment, tmp_path):
    """The steps before a checkpoint tell what is usual after it."""
    changes = ("train.epochs=12", "train.spike=1.8", "train.heal=100", "optim.lr=1e-2", "train.batch_size=8")
    unbroken = fit(experiment(*changes, f"output={tmp_path / 'unbroken'}"))
    made = unbroken.info["decisions"]["healing"]
    assert {decision["what"] for decision in made} == {"skip"}
    assert all("times the median of 50 steps before" in decision["why"] and decision["step"] > 50 for decision in made)

    parts = fit_in_parts(experiment(*changes))
    while next(parts)["step"] < made[0]["step"] - 40:
        pass
    parts.close()
    run = fit(experiment(*changes))
    assert run.info["decisions"]["healing"] == made
    assert sha256(run.path) == sha256(unbroken.path) and steps(run.path) == steps(unbroken.path)


def test_short_of_memory_an_exact_run_says_what_to_change():
    short = healing.Unusable(3, "no room", memory=True)
    with pytest.raises(ResourceError, match=r"set more than train\.shards=4, or fewer samples a batch"):
        healing.decide(short, [], TrainConfig(exact=True), 4, [], 1e-3, 100)
