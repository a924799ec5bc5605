"""The model, optimiser, data and order of one worker, and what it does with them: a step, a validation, its state.

Every step is a function of (experiment, step, weights): the samples come from the stateless order, their augmentation
from (seed, epoch, sample), dropout from (seed, step, worker). So a run continued from a checkpoint takes the very steps
it would have taken, and one worker of Ray Train takes those of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from bigmodel import models, mup, optim, tasks
from bigmodel.data.answers import Answers
from bigmodel.data.arrow import Samples
from bigmodel.data.order import Ids, Order, generators, shard
from bigmodel.data.prepare import Prepared
from bigmodel.errors import ConfigError, out_of_memory
from bigmodel.experiment import Experiment
from bigmodel.models import lora
from bigmodel.models.fields import ModelError, root_message
from bigmodel.models.init import initialize
from bigmodel.predictor import Predictor, autocast, plain_fp32
from bigmodel.tasks.base import Answer, Sample
from bigmodel.training import attention, healing, precision
from bigmodel.training.dropout import BulkDropout
from bigmodel.training.exact import ExactGradients, owned
from bigmodel.training.prefetch import Prefetch
from bigmodel.training.shared import SharedGradients

VALIDATED = 65_536  # samples held at once


class Gradients(Protocol):
    """Leaves the gradient of the whole batch in the parameters. -> its loss, and its tokens with padding"""

    def cut(self, ids: Ids, step: int) -> list[Ids]: ...
    def __call__(self, ids: Ids, step: int) -> tuple[Tensor, int]: ...


def stays() -> bool:
    return False


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this is, and what it works with."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    threads: int = 1
    cores: int = 0
    """It may use so many; where there are more than threads, one of them can make the next batch."""
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
        plain_fp32(self.worker.device)
        torch.nn.Module.to(self.model, self.worker.device).train()  # transformers' own `to` has lost its types
        self.optimizer = optim.build(experiment.optim, self.model, scales)
        self._finite = _are_finite(self.trained)
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
        self.gradients: Gradients = kind(self)
        self.ahead = Prefetch(self, self.gradients.cut)

    def measure_precision(self) -> tuple[str, dict[str, float]]:
        """The quicker one for the first batch, and the seconds of both."""
        with self.in_memory(self.progress.step):
            batch = self.sent(self.batch(self.pieces(self.order.batch(0), 0)[0], 0))
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
            loss, padded = self.gradients(ids, step)
            norm = self.clip()
            optimizer.step()
        self.clear_gradients()
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

    def clear_gradients(self) -> None:
        """As optimizer.zero_grad does, without its hooks."""
        for parameter in self.trained:
            parameter.grad = None

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

    def pieces(self, ids: Ids, step: int) -> list[Ids]:
        """This worker's samples, in as many micro-batches as asked for and possible; the first of all if it is idle."""
        mine = ids[:1] if self.idle(ids) else shard(ids, self.worker.rank, self.worker.world)
        count = min(healing.pieces(step + 1, self.decisions, self.experiment.train), len(mine))
        return [mine[start::count] for start in range(count)]

    def idle(self, ids: Ids) -> bool:
        """A batch with fewer samples than workers leaves some of them idle: they go through the motions, for the others
        wait for their gradients, and their loss counts nothing."""
        return len(ids) <= self.worker.rank

    def places(self, step: int) -> list[tuple[str, int]]:
        """File and line of the rows of a step; of a raw text, the first line of each block."""
        rows = self.prepared.rows("train")
        return [rows.place(int(i)) for i in self.samples.rows(self.order.batch(step))]

    def batch(self, ids: Any, epoch: int) -> dict[str, Tensor]:
        """On the CPU."""
        return self.collate(self.read(ids, epoch))

    def read(self, ids: Any, epoch: int) -> Sequence[Sample]:
        """Samples as they are in this epoch, with what augmentation makes of them."""
        samples: Sequence[Sample] = self.samples.take(ids)
        if not self.augmented:
            return samples
        drawn = generators(self.experiment.train.seed, epoch, map(int, ids))
        return [
            self.task.augment(sample, rng, self.experiment, self.processor, self.samples)
            for sample, rng in zip(samples, drawn, strict=True)
        ]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
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
        own = (((seed * 1_000_003 + step) * 1_024 + number) * 1_024 + rank) % 2**63
        torch.default_generator.manual_seed(own)  # torch.manual_seed takes a millisecond to tell devices not there
        if not cpu:
            torch.cuda.manual_seed(own)
        dropout = BulkDropout(seed, step, number, rank) if cpu else nullcontext()
        with dropout, autocast(self.worker.device, self.precision):
            yield

    def over_workers(self, num_targets: int) -> Callable[[], Any]:
        """-> what tells the targets of the global batch, which its loss is averaged over, however it is shared out: a
        number, on a GPU a tensor of one. Asked after the forward pass, it need not wait for the other workers."""
        if self.worker.world == 1:
            return lambda: num_targets
        total = torch.tensor(float(num_targets), device=self.worker.device)
        told = dist.all_reduce(total, async_op=True)

        def wait() -> Any:
            told.wait()
            return total if total.is_cuda else float(total)

        return wait

    def factor(self, step: int) -> float:
        return optim.factor(step, self.total_steps, self.warmup, self.experiment.optim.schedule)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Exponential moving average of the weights; it starts fast, as the first weights are far off."""
        if self.average:
            decay = min(self.experiment.train.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.average, self.trained, 1 - decay)

    def is_finite(self) -> bool:
        """Whether weights that were numbers at first still are: there is no going back to a checkpoint of others."""
        return bool((_are_finite(self.trained) | ~self._finite).all())

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
        answers: list[Any] = own
        if world > 1:
            theirs: list[Any] = [None] * world
            dist.all_gather_object(theirs, [list(each) for each in own])
            answers = [answer for each in theirs for answer in each]
        return self.task.score(_in_turn(answers, len(samples)), rows)

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


def _are_finite(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().sum() for tensor in tensors]).isfinite()


def _judged(predictor: Predictor, samples: Samples, ids: range) -> Answers:
    answers = Answers()
    for at in range(0, len(ids), VALIDATED):
        answers.extend(predictor.judge_samples(samples.take(ids[at : at + VALIDATED])))
    return answers


def _in_turn(parts: Sequence[Sequence[Answer]], count: int) -> Sequence[Answer]:
    """The first of each part, the second of each, and so on."""
    return parts[0] if len(parts) == 1 else Answers(parts[i % len(parts)][i // len(parts)] for i in range(count))
