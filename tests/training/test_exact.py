"""train.exact: one result, to the bit, whatever the number of workers; and how near the fast mode comes."""

import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract.members import ENCODER, MEMBERS, SMALL, Member

from bigmodel import models
from bigmodel.data.prepare import prepare
from bigmodel.errors import ConfigError
from bigmodel.experiment import Experiment, change
from bigmodel.training import loop
from bigmodel.training.checkpoint import Checkpoint, Checkpoints
from bigmodel.training.events import read
from bigmodel.training.exact import add_up, nodes, owned, total
from bigmodel.training.fit import fit
from bigmodel.training.run import STOP, Run
from bigmodel.training.trainer import Trainer, Worker


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 8, 13, 16])
def test_the_sum_does_not_depend_on_who_adds(shards):
    rng = random.Random(shards)
    numbers = [torch.tensor([rng.uniform(-1, 1) * 10 ** rng.randint(-6, 6) for _ in range(50)]) for _ in range(shards)]
    alone = total(((0, i), numbers[i].clone()) for i in range(shards))
    assert alone.tolist() == pytest.approx(torch.stack(numbers).double().sum(0).tolist(), rel=1e-4, abs=1e-6)
    for world in range(1, shards + 1):
        parts = [owned(rank, world, shards) for rank in range(world)]
        assert [i for part in parts for i in part] == list(range(shards)) and all(parts)
        added = [list(add_up(((0, i), numbers[i].clone()) for i in part)) for part in parts]
        assert [[node for node, _ in each] for each in added] == [nodes(part) for part in parts]
        assert torch.equal(total(pair for each in added for pair in each), alone), world


def work(rank: int, world: int, meeting: str, tree: dict[str, Any], prepared: Path, run: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    try:
        loop.train(Experiment.model_validate(tree), prepared, run, Worker(rank, world), lambda event: None)
    finally:
        dist.destroy_process_group()


multiprocessing.get_context("forkserver").set_forkserver_preload(["bigmodel.training.loop"])  # imported once


def on(world: int, experiment: Experiment, folder: Path, work: Any = work) -> tuple[Checkpoint, list[tuple[Any, ...]]]:
    """Train on so many processes, without Ray. -> the last checkpoint, and what the steps and validations tell."""
    prepared = prepare(experiment)
    run = folder / f"on {world}"
    run.mkdir(parents=True)
    if world:
        meeting = str(folder / f"meeting {world}")
        given = (world, meeting, experiment.model_dump(mode="json"), prepared.path, run)
        torch.multiprocessing.start_processes(work, given, world, start_method="forkserver")
    else:
        loop.train(experiment, prepared.path, run, Worker(), lambda event: None)
    newest, _ = Checkpoints(str(run / "checkpoints")).latest("step-")
    assert newest is not None
    return newest, told(run)


def told(run: Path) -> list[tuple[Any, ...]]:
    timed = {"samples_per_s", "seconds"}
    events = [event for event in read(run / "events.jsonl") if event["kind"] in ("step", "validation")]
    return [tuple((key, value) for key, value in event.items() if key not in timed) for event in events]


def same_bits(one: Checkpoint, other: Checkpoint) -> bool:
    """Weights, running averages, optimiser, averaged weights."""
    return one.tensors.keys() == other.tensors.keys() and all(
        one.tensors[group].keys() == other.tensors[group].keys()
        and all(torch.equal(tensor, other.tensors[group][name]) for name, tensor in one.tensors[group].items())
        for group in one.tensors
    )


HARD = (
    *("train.exact=true", "train.average=0.9", "train.validate_every=5", "train.batch_size=19", "model.dropout=0.3"),
    *("data.augment.token_dropout=0.2", "data.augment.swap=0.1"),
)


@pytest.fixture
def exact(experiment: Callable[..., Experiment]) -> Experiment:
    """Dropout, augmentation, averaging, shards of unequal size, a last batch smaller than the shards."""
    return experiment(*HARD)


def test_any_number_of_workers_gives_the_same_bits(exact, tmp_path):
    alone, steps = on(0, exact, tmp_path)
    assert len(steps) > 20
    for world in (2, 3, 4):
        found, theirs = on(world, exact, tmp_path)
        assert theirs == steps and same_bits(found, alone), f"{world} workers"


def test_running_averages_of_norms_too(tmp_path):
    member = Member("resnet", "image-classification", {"type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]})
    wanted = change(member.experiment(tmp_path), ["train.exact=true", "train.epochs=2", "train.batch_size=10"])
    alone, steps = on(0, wanted, tmp_path)
    assert any("running_mean" in name for name in alone.tensors["model"])
    found, theirs = on(2, wanted, tmp_path)
    assert theirs == steps and same_bits(found, alone)


def test_accumulation_changes_no_bit(experiment, tmp_path):
    alone, _ = on(0, experiment(*HARD), tmp_path / "a")
    pieces, _ = on(0, experiment(*HARD, "train.accumulate=3"), tmp_path / "b")
    assert same_bits(alone, pieces)


def test_the_exact_step_is_that_of_the_whole_batch_but_for_rounding(experiment, tmp_path):
    plain = ("model.dropout=0", "optim.type=gd", "optim.lr=0.1", "optim.clip=0")
    fast, _ = on(0, experiment(*plain), tmp_path / "a")
    exact, _ = on(0, experiment(*plain, "train.exact=true"), tmp_path / "b")
    for name, tensor in fast.tensors["model"].items():
        torch.testing.assert_close(exact.tensors["model"][name], tensor, rtol=1e-4, atol=1e-6)


def test_the_fast_mode_on_two_workers_agrees_after_100_steps(experiment, tmp_path):
    plain = ("model.dropout=0", "train.batch_size=32", "train.epochs=20", "train.validate_every=100")
    _, alone = on(0, experiment(*plain), tmp_path)
    _, two = on(2, experiment(*plain), tmp_path)
    losses = [[dict(step)["loss"] for step in steps if dict(step)["kind"] == "step"] for steps in (alone, two)]
    assert losses[1][:100] == pytest.approx(losses[0][:100], rel=1e-5)


@pytest.mark.parametrize("task", SMALL)
def test_the_fast_mode_on_two_workers_agrees_in_every_task(task, tmp_path):
    """By gradient descent: Adam makes a step of any gradient, be it the rounding of one that is 0."""
    plain = ("optim.type=gd", "optim.lr=0.05", "train.epochs=2", "train.batch_size=7", "train.validate_every=4")
    wanted = SMALL[task](tmp_path, *plain)
    (alone, here), (two, there) = on(0, wanted, tmp_path), on(2, wanted, tmp_path)
    losses = [[dict(step)["loss"] for step in steps] for steps in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) > 5
    for name, tensor in alone.tensors["model"].items():
        torch.testing.assert_close(two.tensors["model"][name], tensor, rtol=1e-5, atol=1e-5)


def test_two_workers_leave_alone_what_no_loss_reaches_as_one_does(tmp_path):
    """A decoder's view of an encoder that is not there: without a gradient nothing decays."""
    model = {"type": "transformer", "is_decoder": True, "add_cross_attention": True, "hidden_dropout_prob": 0.0}
    member = Member("decoder", "text-classification", {**model, "attention_probs_dropout_prob": 0.0, **ENCODER})
    plain = ("optim.type=gd", "optim.lr=0.05", "optim.weight_decay=0.5", "train.epochs=3", "train.accumulate=2")
    wanted = change(member.experiment(tmp_path), plain)
    (alone, here), (two, there) = on(0, wanted, tmp_path), on(2, wanted, tmp_path)
    losses = [[dict(step)["loss"] for step in steps] for steps in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) > 5
    for name, tensor in alone.tensors["model"].items():
        torch.testing.assert_close(two.tensors["model"][name], tensor, rtol=1e-5, atol=1e-5)
    unused = [name for name in alone.tensors["model"] if "crossattention" in name]
    assert unused and all(torch.equal(two.tensors["model"][name], alone.tensors["model"][name]) for name in unused)


KNOWN = [member for member in MEMBERS if models.uses_all(member.model, member.task)]


@pytest.mark.parametrize("member", KNOWN, ids=[f"{member.name}, {member.task}" for member in KNOWN])
def test_each_loss_reaches_every_parameter_of_a_model_of_ours(member, tmp_path):
    wanted = change(member.experiment(tmp_path), [])
    trainer = Trainer(wanted, prepare(wanted), Worker())
    trainer.wrap()
    trainer.gradients(trainer.order.batch(0), 0)
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_run_that_grows_and_shrinks_on_the_way_ends_at_the_same_bits(experiment, tmp_path, ray_here):
    changes = (*HARD, "train.epochs=5")
    alone = fit(experiment(*changes, f"output={tmp_path / 'alone'}"))
    moving = f"output={tmp_path / 'moving'}"
    for step, workers in ((9, 2), (23, 0)):

        def stop(event: dict[str, Any], step: int = step) -> None:
            if event["kind"] == "step" and event["step"] >= step:
                (tmp_path / "moving" / STOP).touch()

        with pytest.raises(loop.Interrupted):
            fit(experiment(*changes, moving, f"train.workers={workers}"), listener=stop)
    moved = fit(experiment(*changes, moving, "train.workers=3"))
    assert told(moved.path) == told(alone.path)
    newest = [Checkpoints(str(run.checkpoints)).latest("step-")[0] for run in (alone, moved)]
    assert newest[0] and newest[1] and same_bits(newest[0], newest[1])
    assert isinstance(moved, Run) and os.path.exists(moved.model)


def test_more_workers_than_shards_are_refused(experiment):
    with pytest.raises(ConfigError, match=r"exact cuts a batch into 4 shards, too few for workers: 5"):
        experiment("train.exact=true", "train.workers=5")


def test_weights_that_nothing_uses_do_not_decay(experiment):
    wanted = experiment("train.exact=true", "optim.type=adamw", "optim.weight_decay=0.5", "train.precision=fp32")
    trainer = Trainer(wanted, prepare(wanted), Worker())
    trainer.model.spare = spare = torch.nn.Parameter(torch.ones(3))
    trainer.optimizer.add_param_group({**trainer.optimizer.param_groups[0], "params": [spare]})
    trainer.wrap()
    trainer.step()
    assert torch.equal(spare, torch.ones(3))
