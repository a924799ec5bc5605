"""Predictor: a model directory in, answers out. Validation, test, batch prediction and every replica call it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bigmodel import tasks
from bigmodel.errors import CheckpointError, ConfigError, ResourceError, first_line, out_of_memory
from bigmodel.tasks.base import Answer, Row, Sample, unread

Ask = Callable[[Any, Any, Any], list[Answer]]  # model, batch, processor
T = TypeVar("T")
BYTES = "__base64__"
INFO, GOLDEN = "bigmodel.json", "golden.jsonl"
MAX_TOKENS = 4096  # of one batch, with its padding: enough to keep two cores busy, small enough to stay in their caches
GPU_TOKENS = 16_384  # a small model's kernels are over before the next is asked for: more texts cost no more time


class Predictor:
    """Task, model and processor, with `info`: what bigmodel.json says of them.

    An answer does not depend on what else is asked with it, but for the last digit of its numbers (1e-7 in fp32): rows
    are sorted by length, cut into batches of at most `max_tokens` tokens, padding included (0: as many as suit the
    device), and answered in the order they came. Where memory is too short for a batch, it and those to come are
    halved. bf16 is autocast, as in training.

    It answers with the weights as they are at its first answer: after a training step, make another. `model` is the
    plain model, for whoever wants its gradients; where there is a faster form of it, that one answers.
    """

    def __init__(
        self,
        task: str,
        model: Any,
        processor: Any,
        info: Mapping[str, Any],
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        plain_fp32(device)
        self.name = task
        self.task = tasks.get(task)
        self.model, self.processor, self.info = model, processor, dict(info)
        self.device, self.precision = device, precision
        self._learnt = model.config.to_dict()

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", precision: str = "auto") -> Predictor:
        """Open a model directory, ours or any of Hugging Face. Its weights are fp32, however they are stored;
        `precision` auto is the one it was scored in."""
        import torch
        from safetensors import SafetensorError

        from bigmodel import models

        path = Path(path)
        info = _read_info(path)
        task = info.get("task") or _guess_task(path)
        auto_class = models.auto_class(task)
        model: Any
        try:
            if models.lora.is_adapter(path):
                _check_base(path, info)
                model = models.lora.load(path, auto_class)
            else:
                model = auto_class.from_pretrained(
                    path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, SafetensorError) as e:
            raise CheckpointError(f"{path}: this model directory does not open: {first_line(e)}") from None
        if reason := tasks.get(task).unfit(model.config):
            raise ConfigError(f"{path}: this model is not for {task}: {reason}. Name a model that is")
        try:
            processor = tasks.get(task).load_processor(path, model.config)
        except (OSError, ValueError, KeyError) as e:
            raise CheckpointError(f"{path}: its processor does not open: {first_line(e)}") from None
        model.to(device).eval()
        return cls(
            task, model, processor, info, device, info.get("precision", "fp32") if precision == "auto" else precision
        )

    def save(self, path: str | Path, golden: Sequence[Row] = ()) -> None:
        """Write the directory beside `path`, then put it in its place. `golden` rows, with the targets
        that the task is judged with, are stored beside what `_prove` says of them."""
        from bigmodel.models import lora

        path = Path(path)
        fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        self._save_model(fresh)
        self.processor.save_pretrained(fresh)
        info = {"task": self.name, **self.info, "weights": _digests(fresh)}
        if base := lora.base_of(fresh):
            info["base"] = _digests(base)
        (fresh / INFO).write_text(json.dumps(info, indent=2, ensure_ascii=False), "utf-8")
        if golden:
            lines = (
                json.dumps({"row": row, "answer": answer}, default=_to_json)
                for row, answer in zip(golden, self._prove(golden), strict=True)
            )
            (fresh / GOLDEN).write_text("".join(line + "\n" for line in lines), "utf-8")
        if path.exists():
            os.rename(path, old)
        os.rename(fresh, path)
        shutil.rmtree(old, ignore_errors=True)

    def _save_model(self, folder: Path) -> None:
        from bigmodel.models import lora

        if lora.is_adapted(self.model):
            self.model = lora.save(self.model, folder)
        else:
            self.model.save_pretrained(folder)

    def cost(self, row: Row) -> int:
        """At most so many tokens the model reads of a row, as far as is known before it is encoded."""
        return self.task.cost(row, self.processor)

    def encode(self, rows: Sequence[Row]) -> list[Sample]:
        return self.task.encode(rows, self.processor, self._learnt)

    @cached_property
    def _forward(self) -> Any:
        """What answers: the model, or its twin that computes no padding and has its bf16 weights made once."""
        from bigmodel.models.packed import pack

        return pack(self.model, self.precision) or self.model

    @property
    def pads(self) -> bool:
        """Whether a batch costs its padding too, so that texts of one length belong together."""
        return self._forward is self.model

    @property
    def max_tokens(self) -> int:
        """Of a batch, where nothing else is asked for."""
        return MAX_TOKENS if self.device == "cpu" else GPU_TOKENS

    def at_once(self, row: Row, most: int) -> int:
        """Of rows like this one, how many to encode and answer together: `most`, but of files, which are large and so
        are their samples, those of a batch. All are of one length, so the batches are the same."""
        if not any(isinstance(value, bytes) for value in row.values()):
            return most
        return min(most, max(1, self.max_tokens // self.cost(row)))

    def predict(self, rows: Sequence[Row], max_tokens: int = 0) -> list[Answer]:
        """One answer a row, with `truncated`, `tokens` and `tokens_read` where the model did not read all of it."""
        return self.predict_samples(self.encode(rows), max_tokens)

    def predict_samples(self, samples: Sequence[Sample], max_tokens: int = 0) -> list[Answer]:
        return self._in_batches(samples, max_tokens, self.task.predict)

    def judge_samples(self, samples: Sequence[Sample]) -> list[Answer]:
        """Answers to samples that carry their target, as the task's `score` wants them."""
        return self._in_batches(samples, 0, self.task.judge)

    def _in_batches(self, samples: Sequence[Sample], max_tokens: int, ask: Ask) -> list[Answer]:
        answers: list[Answer] = [{}] * len(samples)
        max_tokens = max_tokens or self.max_tokens
        lengths = [self.task.length(sample) for sample in samples]
        waiting = list(batches(lengths, max_tokens, self.pads))
        while waiting:
            try:
                found = self._answer([samples[i] for i in waiting[0]], ask)
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e) or len(waiting[0]) == 1:
                    raise
                found = None
            if found is None:  # no longer among frames that hold on to what filled the memory
                waiting = [half for batch in waiting for half in halves(batch)]
                continue
            for i, answer in zip(waiting.pop(0), found, strict=True):
                answers[i] = answer
        return answers

    def _answer(self, samples: Sequence[Sample], ask: Ask) -> list[Answer]:
        """One batch through the model, as it is."""
        import torch

        with torch.inference_mode(), autocast(self.device, self.precision):
            batch = self.task.collate(samples, self.processor)
            tensors = {
                name: value.to(self.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            answers = ask(self._forward, tensors, self.processor)
        for sample, answer in zip(samples, answers, strict=True):
            answer |= unread(sample, self.task.length(sample))
        return answers

    def inside(self, call: Callable[[], T]) -> T:
        """Call it as answers are made: without gradients, in this precision."""
        import torch

        with torch.inference_mode(), autocast(self.device, self.precision):
            return call()

    def _prove(self, rows: Sequence[Row]) -> list[Answer]:
        """What golden rows are compared by: their answers. A text that is written token by token is no proof, as
        another CPU's last digits may turn a word and all that follow: there it is how likely the targets are."""
        if not self.task.judged_with:
            return self.predict(rows)
        judged = self.judge_samples(self.encode(rows))
        return [{key: value for key, value in answer.items() if not isinstance(value, str)} for answer in judged]

    def check_golden(self) -> int:
        """Compare the weights' digests, answer the stored inputs again; CheckpointError if one differs. -> how many."""
        path = Path(self.model.config.name_or_path) / GOLDEN
        for name, digest in self.info.get("weights", {}).items():
            if _digest(path.with_name(name)) != digest:
                raise CheckpointError(f"{path.with_name(name)}: these are not the weights that training wrote")
        if not path.exists():
            return 0
        golden = [json.loads(line, object_hook=_from_json) for line in path.read_text("utf-8").splitlines()]
        same = self.precision == self.info.get("precision", "fp32")
        tolerance = (1e-4 if self.precision == "fp32" else 2e-2) if same else 5e-2
        for stored, answer in zip(golden, self._prove([g["row"] for g in golden]), strict=True):
            if apart := difference(stored["answer"], answer, tolerance):
                raise CheckpointError(f"{path.parent}: this machine does not reproduce the stored answers: {apart}")
        return len(golden)


def batches(lengths: Sequence[int], max_tokens: int, padded: bool = True) -> Iterator[list[int]]:
    """Indices in batches of at most `max_tokens`, with their padding if `padded`; longest first, a longer one alone."""
    batch: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        more = lengths[batch[0]] if batch and padded else lengths[i]
        if batch and tokens + more > max_tokens:
            yield batch
            batch, tokens, more = [], 0, lengths[i]
        batch.append(i)
        tokens += more
    if batch:
        yield batch


def plain_fp32(device: str) -> None:
    """cuDNN would take TF32, with its 10 bits, for convolutions and recurrent layers in fp32. For the whole process."""
    import torch

    if device != "cpu":
        torch.backends.cudnn.allow_tf32 = False


def halves(batch: list[int]) -> list[list[int]]:
    """One alone stays."""
    middle = len(batch) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]


@contextlib.contextmanager
def autocast(device: str, precision: str) -> Iterator[None]:
    """Around a forward pass: nothing for fp32, torch.autocast for bf16. ResourceError where the processor has no kernel
    for it, as older ones have none for an LSTM in bf16."""
    import torch

    if precision == "fp32":
        yield
        return
    try:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
            yield
    except RuntimeError as e:
        if "could not create a primitive descriptor" not in str(e):
            raise
        raise ResourceError(f"this processor cannot compute this model in {precision}. Choose fp32") from None


def difference(stored: Any, found: Any, tolerance: float) -> str:
    """What differs between two answers beyond the tolerance of its numbers, of those above 1 a part of them; nothing if
    they agree."""
    if isinstance(stored, dict) and isinstance(found, dict) and stored.keys() == found.keys():
        if "scores" in stored and abs(stored["score"] - found["score"]) <= tolerance:
            return difference(stored["scores"], found["scores"], tolerance)  # of two labels as likely either may win
        return next(filter(None, (difference(stored[key], found[key], tolerance) for key in stored)), "")
    if isinstance(stored, float) and isinstance(found, float):
        near = abs(stored - found) <= tolerance * max(1.0, abs(stored))  # not so of nan
        return "" if near else f"{found:.6f} instead of {stored:.6f}"
    return "" if stored == found else f"{found!r:.60} instead of {stored!r:.60}"


def _check_base(path: Path, info: Mapping[str, Any]) -> None:
    """CheckpointError where the base of an adapter is not what it was trained beside."""
    from bigmodel.models import lora

    if "base" in info and (base := lora.base_of(path)) and _digests(base) != info["base"]:
        raise CheckpointError(f"{base}: these are not the weights that the adapter {path} was trained beside")


def _digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of the weights in a folder."""
    return {path.name: _digest(path) for path in sorted(folder.glob("*.safetensors"))}


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from None


def _to_json(value: Any) -> Any:
    """Bytes, such as those of an image, for JSON; `_from_json` undoes it."""
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _from_json(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[BYTES]) if value.keys() == {BYTES} else value


def check_directory(path: Path) -> None:
    """ConfigError where no model lies in a folder."""
    if (path / "config.json").is_file():
        return
    if (path / "model" / "config.json").is_file():
        raise ConfigError(f"{path}: not a model directory, but the folder of a run. Did you mean {path / 'model'}?")
    there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no such folder"
    raise ConfigError(f"{path}: not a model directory: it has no config.json ({there or 'it is empty'})")


def stored_weights(path: Path) -> dict[str, str]:
    """File -> SHA-256, as bigmodel.json has them; {} of a directory that is not ours, or not seen from here."""
    return dict(_read_info(path).get("weights", {})) if (path / INFO).is_file() else {}


def _read_info(path: Path) -> dict[str, Any]:
    check_directory(path)
    info = path / INFO
    try:
        read: dict[str, Any] = json.loads(info.read_text("utf-8")) if info.exists() else {}
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{info}: cannot be read: {e}") from None
    return read


def _guess_task(path: Path) -> str:
    """The task of a directory that is not ours, from the class its config names."""
    try:
        architectures = json.loads((path / "config.json").read_text("utf-8")).get("architectures") or []
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}/config.json: cannot be read: {e}") from None
    from bigmodel.models import AUTO_CLASSES

    for name in tasks.TASKS:
        suffix = AUTO_CLASSES[name].removeprefix("AutoModel")
        if suffix and any(architecture.endswith(suffix) for architecture in architectures):
            return name
    raise ConfigError(
        f"{path}: bigmodel has no task for {', '.join(architectures) or 'this model'}. Tasks: {', '.join(tasks.TASKS)}"
    )
