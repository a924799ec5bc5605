"""The step loop of one worker: order -> collate -> loss -> optimiser step. Knows torch, not Ray.

Every step is a function of (experiment, step, weights): the samples come from the stateless order, their augmentation
from (seed, epoch, sample), dropout from (seed, step, worker). So a run continued from a checkpoint takes the very steps
it would have taken, and one worker of Ray Train takes those of this process.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bigmodel import models, mup, optim, tasks
from bigmodel.data.arrow import Samples
from bigmodel.data.order import Order, generator, shard
from bigmodel.data.prepare import Prepared, open_prepared
from bigmodel.errors import CheckpointError, ConfigError, Interrupted, Preempted, ResourceError, out_of_memory
from bigmodel.experiment import Experiment
from bigmodel.models import lora
from bigmodel.models.fields import ModelError, root_message
from bigmodel.models.init import initialize
from bigmodel.predictor import Predictor, autocast
from bigmodel.tasks.base import Answer, Sample
from bigmodel.training import attention, deterministic, healing, precision, setback
from bigmodel.training.checkpoint import Checkpoint, Checkpoints
from bigmodel.training.dropout import BulkDropout
from bigmodel.training.events import Event, Events, Listener, read
from bigmodel.training.exact import ExactGradients, owned
from bigmodel.training.run import STOP, Run
from bigmodel.training.saver import BEST, STEP, Saver
from bigmodel.training.shared import SharedGradients

T = TypeVar("T")
FLUSH = 10  # most steps between two looks at the loss, so that a GPU is not waited for at each
FLUSH_S = 1.0  # seconds between them, where steps are slow
CHECKPOINT_S = 30.0
VALIDATED = 65_536  # samples held at once


def stays() -> bool:
    return False


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this is, and what it works with."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    threads: int = 1
    ray: bool = False
    """A process of Ray Train, not the one that was called."""
    leaves: Callable[[], bool] = stays
    """Whether it is known that a machine of the run will be taken away."""


@dataclass
class Progress:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None
    num_worse: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Time spent training, over all continuations."""
    samples: int = 0
    events: int = 0
    """Bytes of events.jsonl."""


@dataclass
class Trainer:
    """Model, optimiser, data and order of one worker."""

    experiment: Experiment
    prepared: Prepared
    worker: Worker
    progress: Progress = field(default_factory=Progress)
    decisions: Sequence[healing.Decision] = ()
    """About steps that could not be taken."""

    def __post_init__(self) -> None:
        experiment, train = self.experiment, self.experiment.train
        self.task = tasks.get(experiment.task)
        self.processor = self.prepared.processor()
        self.samples = self.task.examples(self.prepared.samples("train"), experiment)
        self.order = Order(self.samples.lengths, train.batch_size, train.bucket, train.seed, train.batch_tokens)
        self.total_steps = self.order.steps_per_epoch * train.epochs
        self.warmup = min(experiment.optim.warmup, self.total_steps // 10)
        torch.manual_seed(train.seed)
        try:
            self.model = models.build(experiment.model, self.prepared.learnt, experiment.task)
        except ModelError as e:
            raise ConfigError(str(e)) from None
        if self.model.config.is_encoder_decoder and self.model.can_generate():  # a pretrained one may bring beams
            self.model.generation_config.update(num_beams=1, early_stopping=False, length_penalty=1.0)
        initialize(self.model, experiment.init, train.seed)
        self.adapt()
        scales = mup.apply(experiment, self.model)
        attention.use(self.model, self.worker.device)
        torch.nn.Module.to(self.model, self.worker.device).train()  # transformers' own `to` has lost its types
        self.optimizer = optim.build(experiment.optim, self.model, scales)
        self.average = [p.detach().clone() for p in self.trained] if train.average else []
        self.precision = "fp32"
        self.augmented = any(experiment.data.augment.model_dump().values())

    def adapt(self) -> None:
        """LoRA, where it is asked for."""
        if "lora" in self.experiment.model:
            settings = lora.Settings(**self.experiment.model["lora"])
            try:
                lora.adapt(self.model, settings, self.experiment.train.seed)
            except ModelError as e:
                raise ConfigError(str(e)) from None

    def wrap(self) -> None:
        """Say how gradients come about: as fast as can be, or exactly."""
        kind = ExactGradients if self.experiment.train.exact else SharedGradients
        self.gradients: Callable[[Any, int, int], tuple[Tensor, int]] = kind(self)

    def measure_precision(self) -> tuple[str, dict[str, float]]:
        """The quicker one for the first batch, and the seconds of both."""
        with self.in_memory(self.progress.step):
            batch = self.sent(self.batch(self.pieces(self.order.batch(0), 0)[0][0], 0))
            return precision.choose(
                self.model, self.worker.device, lambda: self.task.loss(self.model, batch, self.experiment)
            )

    @cached_property
    def trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    # ---- one step

    def step(self) -> dict[str, Any]:
        """One optimiser step. -> what happened, the loss and the gradient's norm still tensors."""
        step, optimizer = self.progress.step, self.optimizer
        epoch = step // self.order.steps_per_epoch
        lr = self.lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        ids = self.order.batch(step)
        with self.in_memory(step):
            loss, padded = self.gradients(ids, epoch, step)
            norm = self.clip()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.update_average(step)

        self.progress.step += 1
        self.progress.samples += len(ids)
        tokens = int(self.order.lengths[ids].sum())
        return {
            "step": step + 1,
            "epoch": epoch,
            "loss": loss,
            "norm": norm,
            "lr": lr,
            "samples": len(ids),
            "tokens": tokens,
            "padded": padded,
        }

    @contextmanager
    def in_memory(self, step: int) -> Iterator[None]:
        """Unusable where what is inside does not fit into memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as e:
            if not out_of_memory(e):
                raise
            raise healing.Unusable(step + 1, root_message(e), memory=True) from e

    def clip(self) -> Tensor:
        """Limit the gradient's global norm. -> what it was."""
        parameters, limit = self.trained, self.experiment.optim.clip
        if limit:
            return torch.nn.utils.clip_grad_norm_(parameters, limit)
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def lr(self, step: int) -> float:
        """The learning rate of a step, before a group's own scale."""
        optim, train = self.experiment.optim, self.experiment.train
        return optim.lr * self.factor(step) * healing.rate(step + 1, self.decisions, train)

    def pieces(self, ids: Any, step: int) -> tuple[list[Any], bool]:
        """This worker's samples, in as many micro-batches as asked for and possible.

        A batch with fewer samples than workers leaves some of them idle: they go through the motions on the first
        sample, for the others wait for their gradients, and their loss counts nothing.
        """
        mine = shard(ids, self.worker.rank, self.worker.world)
        if not len(mine):
            return [ids[:1]], True
        count = min(healing.pieces(step + 1, self.decisions, self.experiment.train), len(mine))
        return [mine[start::count] for start in range(count)], False

    def places(self, step: int) -> list[tuple[str, int]]:
        """File and line of the rows of a step; none where samples are not rows, as packed windows of text."""
        if len(self.samples) != self.prepared.size("train"):
            return []
        rows = self.prepared.rows("train")
        return [rows.place(int(i)) for i in self.order.batch(step)]

    def batch(self, ids: Any, epoch: int) -> dict[str, Tensor]:
        """On the CPU."""
        samples: list[Sample] = self.samples.take(ids)
        if self.augmented:
            seed = self.experiment.train.seed
            samples = [
                self.task.augment(sample, generator(seed, epoch, int(i)), self.experiment, self.processor, self.samples)
                for i, sample in zip(ids, samples, strict=True)
            ]
        batch: dict[str, Tensor] = self.task.collate(samples, self.processor)
        return batch

    def sent(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch to the device: what has to be counted in it was counted before, for a GPU would be waited for."""
        if self.worker.device == "cpu":
            return batch
        return {name: tensor.pin_memory().to(self.worker.device, non_blocking=True) for name, tensor in batch.items()}

    @contextmanager
    def forward(self, step: int, number: int, rank: int) -> Iterator[None]:
        """Around a forward pass: precision, and random numbers that follow from step, micro-batch and worker."""
        seed = self.experiment.train.seed
        cpu = self.worker.device == "cpu"
        # not torch.manual_seed, which takes a millisecond to tell devices that are not there
        reseed = torch.default_generator.manual_seed if cpu else torch.cuda.manual_seed
        reseed((((seed * 1_000_003 + step) * 1_024 + number) * 1_024 + rank) % 2**63)
        dropout = BulkDropout(seed, step, number, rank) if cpu else nullcontext()
        with dropout, autocast(self.worker.device, self.precision):
            yield

    def over_workers(self, num_targets: int) -> float:
        """Targets of the global batch: what its loss is averaged over, however it is shared out."""
        if self.worker.world == 1:
            return num_targets
        total = torch.tensor(float(num_targets), device=self.worker.device)
        dist.all_reduce(total)
        return total.item()

    def factor(self, step: int) -> float:
        return optim.factor(step, self.total_steps, self.warmup, self.experiment.optim.schedule)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Exponential moving average of the weights; it starts fast, as the first weights are far off."""
        if self.average:
            decay = min(self.experiment.train.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, self.trained, 1 - decay)

    # ---- validation

    def validate(self, rows: Sequence[dict[str, Any]], samples: Samples) -> dict[str, float]:
        """Metrics of the validation rows, the workers each answering their part."""
        world = self.worker.world
        parts = self.experiment.train.shards if self.experiment.train.exact else world
        self.model.eval()
        with self.averaged():
            predictor = Predictor(
                self.experiment.task, self.model, self.processor, {}, self.worker.device, self.precision
            )
            own = [
                _judged(predictor, samples, range(part, len(samples), parts))
                for part in owned(self.worker.rank, world, parts)
            ]
        self.model.train()
        answers = own
        if world > 1:
            theirs: list[Any] = [None] * world
            dist.all_gather_object(theirs, own)
            answers = [answer for each in theirs for answer in each]
        return self.task.score([answers[i % parts][i // parts] for i in range(len(samples))], rows)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the current ones."""
        if not self.average:
            yield
            return
        parameters = [p.data for p in self.trained]
        current = [p.clone() for p in parameters]
        torch._foreach_copy_(parameters, self.average)
        yield
        torch._foreach_copy_(parameters, current)

    # ---- saving

    def weights(self, averaged: bool = False) -> dict[str, Tensor]:
        """All that training changes: what is not trained comes from the checkpoint that the model was built from.

        The tensors are those training goes on with: who keeps them copies them.
        """
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        trained = zip(names, self.average if averaged and self.average else self.trained, strict=True)
        buffers = ((name, tensor) for name, tensor in self.model.named_buffers() if tensor.numel())
        return {name: tensor.detach() for name, tensor in (*trained, *buffers)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The whole state, by group; as in `weights`, no copies."""
        average = {str(i): tensor for i, tensor in enumerate(self.average)}
        return {"model": self.weights(), "optimizer": optim.state_tensors(self.optimizer), "average": average}

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.load_weights(tensors["model"])
        optim.load_state_tensors(self.optimizer, tensors["optimizer"])
        for i, tensor in enumerate(self.average):
            tensor.copy_(tensors["average"][str(i)])

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _judged(predictor: Predictor, samples: Samples, ids: range) -> list[Answer]:
    starts = range(0, len(ids), VALIDATED)
    return [answer for at in starts for answer in predictor.judge_samples(samples.take(ids[at : at + VALIDATED]))]


class Stop:
    """Ctrl-C, or SIGTERM, ends the run after the step that is under way; a second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
    saver = Saver(checkpoints, experiment.train.keep, experiment.train.keep_every)
    with Events(run_path / "events.jsonl" if first else None, listener) as events, Stop() as stop:
        while True:
            trainer = Trainer(experiment, open_prepared(prepared), worker, decisions=decisions)
            _resume(trainer, checkpoints, events, run_path)
            if lacks := Run(run_path).info.get("decisions", {}).get("nondeterministic"):
                events.write("decision", what="nondeterministic", choice=lacks)
            try:
                with deterministic.kernels(worker.device, wanted=not lacks), saver:
                    _decide_precision(trainer, Run(run_path), events)
                    trainer.wrap()
                    yield from _steps(trainer, saver, events, stop, run_path, settled)
                break
            except healing.Unusable as e:
                found = healing.Unusable(e.step, e.why, e.memory)  # without the frames, which hold on to what filled up
            except RuntimeError as e:
                if not (lacks := deterministic.lacking(e)):
                    raise
                found = None
            if found is None:
                _allow_any_kernel(trainer, run, lacks)
            else:
                decisions = _heal(trainer, run, found)
            del trainer
            gc.collect()  # before another one is built
        events.write("end", step=trainer.progress.step, seconds=trainer.progress.seconds)
    return vars(trainer.progress) | {"precision": trainer.precision, "parameters": trainer.model.num_parameters()}


def _resume(trainer: Trainer, checkpoints: Checkpoints, events: Events, run_path: Path) -> None:
    """Take up the newest whole checkpoint, and cut the events back to it."""
    found, damaged = _newest(trainer.worker, checkpoints)
    if found is not None:
        trainer.restore(found.tensors)
        trainer.progress = Progress(**found.state)
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
        events.write("damaged_checkpoint", name=name, used=found.name if found else None)
    told = {event["step"] for event in events.written() if event["kind"] == "healing"} if trainer.decisions else ()
    for decision in trainer.decisions:
        if decision["step"] > trainer.progress.step and decision["step"] not in told:
            events.write("healing", **decision)


def _newest(worker: Worker, checkpoints: Checkpoints) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint as the first worker sees it, and the damaged ones that were passed over. Others might
    look a moment before or after a save, and all must go on from one step."""
    if worker.world == 1:
        return checkpoints.latest(STEP)
    found, damaged = checkpoints.latest(STEP) if worker.rank == 0 else (None, [])
    name = [found.name if found else None]
    dist.broadcast_object_list(name, device=torch.device(worker.device))
    if name[0] and worker.rank:
        found = checkpoints.load(name[0])
        if found is None:
            raise CheckpointError(f"worker {worker.rank} cannot read the checkpoint {name[0]}, which the first one can")
    return found, damaged


def _heal(trainer: Trainer, run: Run, found: healing.Unusable) -> list[healing.Decision]:
    """What is decided now, with what was decided before: in run.json, before anything is done again."""
    step, worker = found.step - 1, trainer.worker
    made = list(trainer.decisions)
    largest = max(map(len, trainer.pieces(trainer.order.batch(step), step)[0]))
    train, rows = trainer.experiment.train, trainer.places(step)
    made.append(healing.decide(found, made, train, largest, rows, trainer.lr(step), trainer.total_steps))
    if worker.rank == 0 or found.memory:  # of a loss all workers know; short of memory may be one alone
        run.write(decisions=Run(run.path).info.get("decisions", {}) | {"healing": made})
    if found.memory and worker.world > 1:
        raise RuntimeError(f"out of memory: {found.why}") from found  # all begin anew, and learn it from run.json
    return made


def _allow_any_kernel(trainer: Trainer, run: Run, lacks: str) -> None:
    """Where a GPU has no deterministic kernel for an operation, the run goes on without, and says so."""
    if trainer.experiment.train.exact:
        raise ConfigError(f"train.exact: {lacks} on a GPU. Train on CPUs (train.device=cpu), or leave out train.exact")
    if trainer.worker.rank == 0:
        run.write(decisions=Run(run.path).info.get("decisions", {}) | {"nondeterministic": lacks})
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
        run.write(decisions=run.info.get("decisions", {}) | {"precision": decided})
        events.write("decision", what="precision", choice=decided, seconds=seconds)
    if trainer.worker.world > 1:  # what the others read may be older or newer than what the first one did
        choice = [decided]
        dist.broadcast_object_list(choice, device=torch.device(trainer.worker.device))
        decided = choice[0]
    trainer.precision = decided


def _steps(
    trainer: Trainer, saver: Saver, events: Events, stop: Stop, run_path: Path, settled: bool
) -> Generator[Event, None, None]:
    train, progress = trainer.experiment.train, trainer.progress
    rows, samples = trainer.prepared.rows("valid"), trainer.prepared.samples("valid")
    validate_every = train.validate_every or trainer.order.steps_per_epoch
    log = StepLog(trainer, events, run_path)
    if train.early_stopping and progress.num_worse >= train.early_stopping:
        return  # it had ended
    begin = progress.step
    while progress.step < trainer.total_steps:
        if healing.skips(progress.step + 1, trainer.decisions):
            progress.step += 1
        else:
            log.add(trainer.step())
        if progress.step == begin + 1:
            saver.reserve(trainer.tensors())  # of the first step: before it the optimiser has no state
        validate = progress.step % validate_every == 0 or progress.step == trainer.total_steps
        save = validate or stop.asked or (train.checkpoint_every and progress.step % train.checkpoint_every == 0)
        if save or log.full:
            log.flush()
        save = save or log.stop_asked or log.leaving
        validated, best = _validate(trainer, events, rows, samples) if validate else (None, None)
        if save or (log.checkpoint_due and not train.checkpoint_every):
            progress.events = events.position
            better = ({"model": trainer.weights(averaged=True)}, best) if best is not None else None
            saver.save(trainer.tensors(), vars(progress), better)
            log.saved()  # validation and saving are not training
        if stop.asked or log.stop_asked or log.leaving:
            events.flush()
            saver.wait()
            if log.leaving:
                raise Preempted(f"a node is to be taken away; the state of step {progress.step:,} is saved")
            raise Interrupted(f"stopped after step {progress.step} of {trainer.total_steps}; the state is saved")
        if train.early_stopping and progress.num_worse >= train.early_stopping:
            events.write("early_stop", step=progress.step, best_step=progress.best_step)
            break
        if validated and progress.step < trainer.total_steps:
            events.flush()
            if settled:
                saver.wait()
            yield validated
            log.saved()  # nor is what others do meanwhile


class StepLog:
    """The lines of the last steps, written together: only then is a GPU, or another worker, waited for.

    Whether to look again and whether a checkpoint is due depends on time, but all workers must do the same: the first
    one's clock, which travels with the losses, decides for all. So does whether it sees the file that asks to stop.
    What any of them knows of machines that will be taken away, all of them learn.
    """

    def __init__(self, trainer: Trainer, events: Events, run_path: Path) -> None:
        self._trainer, self._events, self._stop_file = trainer, events, run_path / STOP
        spike = trainer.experiment.train.spike
        self._spikes = healing.Spikes(spike, healing.last_losses(read(run_path / "events.jsonl")) if spike else [])
        self._pending: list[dict[str, Any]] = []
        self._wanted = 1
        self._flushed = self._saved = time.perf_counter()
        self.checkpoint_due = self.stop_asked = self.leaving = False

    @property
    def full(self) -> bool:
        return len(self._pending) >= self._wanted

    def add(self, happened: dict[str, Any]) -> None:
        self._pending.append(happened)

    def saved(self) -> None:
        self._flushed = self._saved = time.perf_counter()
        self.checkpoint_due = False

    def flush(self) -> None:
        """Write the lines. Unusable if a loss, or the norm of a gradient, is not a number."""
        if not self._pending:
            return
        now = time.perf_counter()
        seconds = now - self._flushed
        losses, norms = (torch.stack([happened[name] for happened in self._pending]) for name in ("loss", "norm"))
        stop, leaves = self._stop_file.exists(), self._trainer.worker.leaves()
        losses, seconds, age, self.stop_asked, self.leaving = self._agree(
            losses, seconds, now - self._saved, stop, leaves
        )
        self._trainer.progress.seconds += seconds
        self.checkpoint_due = age >= CHECKPOINT_S
        self._wanted = min(FLUSH, max(1, int(FLUSH_S * len(self._pending) / max(seconds, 1e-9))))
        rate = sum(happened["samples"] for happened in self._pending) / max(seconds, 1e-9)
        for happened, loss, norm in zip(self._pending, losses.tolist(), norms.tolist(), strict=True):
            numbers = {"loss": loss, "norm": norm}
            for name, number in numbers.items():
                if not math.isfinite(number):
                    what = {"loss": "loss", "norm": "norm of the gradient"}[name]
                    raise healing.Unusable(happened["step"], f"the {what} is {number}")
            if why := self._spikes(loss):
                raise healing.Unusable(happened["step"], why)
            self._events.write("step", **happened | numbers, samples_per_s=round(rate, 1))
        self._events.flush()
        self._pending, self._flushed = [], time.perf_counter()

    def _agree(
        self, losses: Tensor, seconds: float, age: float, stop: bool, leaves: bool
    ) -> tuple[Tensor, float, float, bool, bool]:
        """The mean of all workers' losses; of the first one seconds, age of its checkpoint, stop file; whether any of
        them leaves."""
        world = self._trainer.worker.world
        if world == 1:
            return losses, seconds, age, stop, leaves
        own = [seconds * world, age * world, float(stop) * world] if self._trainer.worker.rank == 0 else [0.0] * 3
        own.append(float(leaves))
        shared = torch.cat([losses.double(), torch.tensor(own, dtype=torch.float64, device=losses.device)])
        dist.all_reduce(shared)
        shared /= world
        seconds, age, asked, leaving = shared[-4:].tolist()
        return shared[:-4], seconds, age, asked > 0, leaving > 0


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
