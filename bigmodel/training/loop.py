"""The step loop of one worker: a step after the other, validations, checkpoints, and what to do where a step cannot be
taken. Knows torch, not Ray."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bigmodel.data.prepare import open_prepared
from bigmodel.errors import CheckpointError, ConfigError, Interrupted, Preempted, ResourceError, out_of_memory
from bigmodel.experiment import Experiment
from bigmodel.models.fields import root_message
from bigmodel.training import deterministic, healing, setback
from bigmodel.training.checkpoint import Checkpoint, Checkpoints
from bigmodel.training.events import Event, Events, Listener
from bigmodel.training.run import Run
from bigmodel.training.saver import BEST, STEP, Saver
from bigmodel.training.steplog import StepLog
from bigmodel.training.stop import Stop
from bigmodel.training.trainer import Progress, Trainer, Worker

T = TypeVar("T")


def train(experiment: Experiment, prepared: Path, run_path: Path, worker: Worker, listener: Listener) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one. -> the progress, as in a checkpoint, and
    what the report says beside it.

    Every worker calls it; the first one writes. Leaves the best weights in checkpoints/best-*. TrainingError if the
    loss is not a number, Interrupted (state saved) on a signal or where somebody put a file `stop` into the run.
    """
    return finish(in_parts(experiment, prepared, run_path, worker, listener))


Parts = Generator[Event, None, dict[str, Any]]


def finish(parts: Generator[Event, None, T]) -> T:
    """Go through all parts. -> what comes at their end."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            found: T = end.value
            return found


def in_parts(
    experiment: Experiment, prepared: Path, run_path: Path, worker: Worker, listener: Listener, settled: bool = False
) -> Parts:
    """`train` that hands over its validation events, and may be left at any. With `settled` each comes when its
    checkpoint is on disk; else the checkpoint may still be under way, until the parts are closed or at their end."""
    torch.set_num_threads(worker.threads)
    if ":" in worker.device:  # one of several GPUs
        torch.cuda.set_device(worker.device)
    first, run = worker.rank == 0, Run(run_path)
    decisions: list[healing.Decision] = run.info.get("decisions", {}).get("healing", [])
    checkpoints = Checkpoints(str(run_path / "checkpoints"), readonly=not first)
    doubtful = 0
    with Events(run_path / "events.jsonl" if first else None, listener) as events, Stop() as stop:
        saver = Saver(checkpoints, experiment.train.keep, experiment.train.keep_every, events.settle)
        while True:
            with healing.held():
                trainer = Trainer(experiment, open_prepared(prepared), worker, decisions=decisions)
                _resume(trainer, checkpoints, events, run_path)
            if lacks := Run(run_path).info.get("decisions", {}).get("nondeterministic"):
                events.write("decision", what="nondeterministic", choice=lacks)
            try:
                with healing.held(), deterministic.kernels(worker.device, wanted=not lacks), saver:
                    _decide_precision(trainer, Run(run_path), events)
                    trainer.wrap()
                    with trainer.ahead:
                        yield from _steps(trainer, saver, events, stop, run_path, settled, doubtful)
                break
            except healing.Unusable as e:
                found = healing.Unusable(*e.args)  # without the frames, which hold on to what filled up
            except RuntimeError as e:
                if not (lacks := deterministic.lacking(e)):
                    raise
                found = None
            doubtful = 0
            if found is None:
                _allow_any_kernel(trainer, run, lacks)
            elif found.sure:
                decisions = _heal(trainer, run, found)
            else:
                doubtful = found.step
            del trainer
            gc.collect()  # before another one is built
        events.write("end", step=trainer.progress.step, seconds=trainer.progress.seconds)
    return vars(trainer.progress) | {"precision": trainer.precision, "parameters": trainer.model.num_parameters()}


def _resume(trainer: Trainer, checkpoints: Checkpoints, events: Events, run_path: Path) -> None:
    """Take up the newest whole checkpoint, and cut the events back to it."""
    found, damaged, lost = _newest(trainer.worker, checkpoints)
    if found is not None:
        trainer.restore(found.tensors)
        trainer.progress = Progress(**found.state)
        # a later one, whole though its best weights are not, would be left in place of what is saved at its step
        checkpoints.prune(STEP, [name for name in checkpoints.names(STEP) if name <= found.name])
    if lost:
        trainer.progress.best_value, trainer.progress.best_step, trainer.progress.num_worse = None, None, 0
    known = [name for name in checkpoints.names(BEST) if name <= f"{BEST}{trainer.progress.step:08d}"]
    checkpoints.prune(BEST, known)  # a later one is of steps that are done again, and may come out otherwise
    again = [event["step"] for event in events.start(trainer.progress.events) if event["kind"] == "step"]
    sizes = {"train": len(trainer.samples), "valid": trainer.prepared.size("valid")}
    events.write(
        "start",
        step=trainer.progress.step,
        total_steps=trainer.total_steps,
        steps_per_epoch=trainer.order.steps_per_epoch,
        samples=sizes,
        parameters=trainer.model.num_parameters(),
        device=trainer.worker.device,
        gpu="" if trainer.worker.device == "cpu" else torch.cuda.get_device_name(),
        workers=trainer.worker.world if trainer.worker.ray else 0,
        threads=trainer.worker.threads,
        node=platform.node(),
        pid=os.getpid(),
        time=round(time.time(), 3),
        again=max(again, default=trainer.progress.step) - trainer.progress.step,
        after=setback.taken(run_path) if trainer.worker.rank == 0 else "",
    )
    events.begun()
    for name in damaged:
        events.write("damaged_checkpoint", name=name, used=found.name if found else None, lost=name == lost)
    written = events.written() if trainer.decisions else []
    told = [_decided(event) for event in written if event["kind"] == "healing"]
    for decision in trainer.decisions:
        if decision["step"] > trainer.progress.step and _decided(decision) not in told:
            events.write("healing", **decision)


def _decided(about: dict[str, Any]) -> tuple[int, str, int | None]:
    """A step may be decided about again: cut smaller, and smaller still."""
    return about["step"], about["what"], about.get("to")


def _newest(worker: Worker, checkpoints: Checkpoints) -> tuple[Checkpoint | None, list[str], str]:
    """What `_whole` finds for the first worker. Others might look a moment before or after a save, and all must go on
    from one step."""
    if worker.world == 1:
        return _whole(checkpoints)
    found, damaged, lost = _whole(checkpoints) if worker.rank == 0 else (None, [], "")
    name = [found.name if found else None, lost]
    dist.broadcast_object_list(name, device=torch.device(worker.device))
    if name[0] and worker.rank:
        found = checkpoints.load(name[0])
        if found is None:
            raise CheckpointError(f"worker {worker.rank} cannot read the checkpoint {name[0]}, which the first one can")
    return found, damaged, name[1] or ""


def _whole(checkpoints: Checkpoints) -> tuple[Checkpoint | None, list[str], str]:
    """The newest whole checkpoint whose best weights are whole too, and what is damaged and was passed over. Where
    there is none, the newest whole one, and the name of its best weights, which are lost."""
    found, damaged = checkpoints.latest(STEP, _best)
    if found is None and (found := checkpoints.latest(STEP)[0]) is not None:
        return found, damaged, _best(found.state)
    return found, damaged, ""


def _best(state: dict[str, Any]) -> str:
    """The weights that a checkpoint names as the best."""
    return "" if state["best_step"] is None else f"{BEST}{state['best_step']:08d}"


def _heal(trainer: Trainer, run: Run, found: healing.Unusable) -> list[healing.Decision]:
    """What is decided now, with what was decided before: in run.json, before anything is done again."""
    step, worker = found.step - 1, trainer.worker
    made = list(trainer.decisions)
    largest = max(map(len, trainer.pieces(trainer.order.batch(step), step)))
    train, rows = trainer.experiment.train, trainer.places(step)
    made.append(healing.decide(found, made, train, largest, rows, trainer.lr(step), trainer.total_steps))
    if worker.rank == 0 or found.memory:  # of a loss all workers know; short of memory may be one alone
        _write_decision(run, healing=made)
    if found.memory and worker.world > 1:
        raise RuntimeError(f"out of memory: {found.why}") from found  # all begin anew, and learn it from run.json
    return made


def _write_decision(run: Run, **made: Any) -> None:
    """Beside those that stand in run.json, also since this process read it."""
    run.write(decisions=Run(run.path).info.get("decisions", {}) | made)


def _allow_any_kernel(trainer: Trainer, run: Run, lacks: str) -> None:
    """Where a GPU has no deterministic kernel for an operation, the run goes on without, and says so."""
    if trainer.experiment.train.exact:
        raise ConfigError(f"train.exact: {lacks} on a GPU. Train on CPUs (train.device=cpu), or leave out train.exact")
    _write_decision(run, nondeterministic=lacks)  # it may be one worker's alone
    if trainer.worker.world > 1:
        raise RuntimeError(lacks)  # all begin anew, and learn it from run.json


def _decide_precision(trainer: Trainer, run: Run, events: Events) -> None:
    """As asked; for `auto` as decided before, else as measured now by the first worker, which writes it down."""
    asked = trainer.experiment.train.precision
    if asked == "auto" and trainer.experiment.train.exact:
        asked = "fp32"  # what is timed may come out otherwise next time
    decided = run.info.get("decisions", {}).get("precision") if asked == "auto" else asked
    if decided is None and trainer.worker.rank == 0:
        decided, seconds = trainer.measure_precision()
        _write_decision(run, precision=decided)
        events.write("decision", what="precision", choice=decided, seconds=seconds)
    elif asked == "auto" and not any(  # cut off with what followed the last checkpoint, or decided by another run
        event.get("what") == "precision" for event in events.written()
    ):
        events.write("decision", what="precision", choice=decided, seconds={})
    if trainer.worker.world > 1:  # what the others read may be older or newer than what the first one did
        choice = [decided]
        dist.broadcast_object_list(choice, device=torch.device(trainer.worker.device))
        decided = choice[0]
    trainer.precision = decided


def _steps(
    trainer: Trainer, saver: Saver, events: Events, stop: Stop, run_path: Path, settled: bool, doubtful: int
) -> Generator[Event, None, None]:
    train, progress = trainer.experiment.train, trainer.progress
    rows, samples = trainer.prepared.rows("valid"), trainer.prepared.samples("valid")
    validate_every = train.validate_every or trainer.order.steps_per_epoch
    log = StepLog(trainer, events, stop, run_path, doubtful)
    if _stops_early(trainer, events):
        return  # it had ended, and what told of it was cut off with what followed the checkpoint
    begin = progress.step
    if begin == trainer.total_steps and progress.best_step is None:  # the best weights are lost: these are left
        _, best = _validate(trainer, events, rows, samples)
        assert best is not None, "the first is the best so far"
        saver.save(trainer.tensors(), vars(progress), ({"model": trainer.weights(averaged=True)}, best))
    while progress.step < trainer.total_steps:
        if healing.skips(progress.step + 1, trainer.decisions):
            progress.step += 1
        else:
            log.add(trainer.step())
        if progress.step == begin + 1:
            saver.reserve(trainer.tensors())  # of the first step: before it the optimiser has no state
        validate = progress.step % validate_every == 0 or progress.step == trainer.total_steps
        save = validate or log.stops or (train.checkpoint_every and progress.step % train.checkpoint_every == 0)
        if save or log.full:
            log.flush()
        save = save or log.stops or log.leaving or (log.checkpoint_due and not train.checkpoint_every)
        validated, best = _validate(trainer, events, rows, samples) if validate else (None, None)
        if save:
            progress.events = events.position
            better = ({"model": trainer.weights(averaged=True)}, best) if best is not None else None
            saver.save(trainer.tensors(), vars(progress), better)
            log.saved()  # validation and saving are not training
        if log.stops or log.leaving:
            events.flush()
            saver.wait()
            if log.leaving:
                raise Preempted(f"a node is to be taken away; the state of step {progress.step:,} is saved")
            raise Interrupted(f"stopped after step {progress.step} of {trainer.total_steps}; the state is saved")
        if _stops_early(trainer, events):
            break
        if validated and progress.step < trainer.total_steps:
            events.flush()
            if settled:
                saver.wait()
            yield validated
            log.saved()  # nor is what others do meanwhile


def _stops_early(trainer: Trainer, events: Events) -> bool:
    """Whether too many validations have been no better than the best one: then it is told."""
    allowed, progress = trainer.experiment.train.early_stopping, trainer.progress
    if not allowed or progress.num_worse < allowed:
        return False
    events.write("early_stop", step=progress.step, best_step=progress.best_step)
    return True


def _validate(trainer: Trainer, events: Events, rows: Any, samples: Any) -> tuple[Event | None, dict[str, Any] | None]:
    """Score the validation rows. -> the event of the validation, and what is kept beside the weights if they are the
    best so far. Without such rows there is no event, and the last weights count as the best.
    """
    progress, goal = trainer.progress, trainer.task.goal
    start = time.perf_counter()
    try:
        metrics = trainer.validate(rows, samples) if len(rows) else {}
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        raise ResourceError(
            f"out of memory while validating a single row after step {progress.step:,}: {root_message(e)}. Lower "
            "data.max_length or the size of the model, or train where there is more memory; the last checkpoint stays"
        ) from e
    value = metrics.get(goal.metric)
    better = value is None or goal.better(value, progress.best_value)
    if better:
        progress.best_value, progress.best_step, progress.num_worse = value, progress.step, 0
    else:
        progress.num_worse += 1
    if metrics:
        seconds = round(time.perf_counter() - start, 3)
        events.write("validation", step=progress.step, **metrics, best=better, seconds=seconds)
    event = {"kind": "validation", "step": progress.step, **metrics} if metrics else None
    return event, {"metrics": metrics} if better else None
