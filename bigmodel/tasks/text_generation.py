"""text-generation: a text in, what comes next out. Trained on packed documents, judged in nats and bits a byte."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from bigmodel.errors import ConfigError, first_line
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import exact_tokenizer, texts, tokenizer
from bigmodel.tasks.base import BLOCK, Answer, Examples, Goal, Refused, Row, Sample
from bigmodel.tasks.decoding import DEFAULT_NEW, MOST_NEW, OPTIONS, Decoder, complete
from bigmodel.tasks.packing import Packed
from bigmodel.tasks.texts import IGNORE_INDEX
from bigmodel.tasks.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

goal = Goal("loss", "min")
targets = ("block",)
judged_with = ("block",)
unit = "tokens"

BEGINS, ENDS = 1, 2
JUDGED_AT_ONCE = 8192
"""Tokens of the windows that are judged in one call of the model."""


def columns(data: DataConfig) -> dict[str, str]:
    return {"text": data.text or "text", "block": BLOCK}


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    value = record[columns["text"]]
    messages = said(value, columns["text"]) if isinstance(value, list) else []
    text = chat(messages, "block" not in columns) if messages else value
    if not isinstance(text, str):
        found = "nothing" if text is None else f"{type(text).__name__} {text!r:.40}"
        raise Refused(f"the text is {found}", columns["text"])
    if not text and "block" in columns:
        raise Refused("the text is empty", columns["text"])
    if not tokenizer.is_text(text):
        raise Refused("half of a surrogate pair is no character", columns["text"])
    row = {"text": text, "chat": json.dumps(messages, ensure_ascii=False) if messages else ""}
    return row | ({"block": record.get(BLOCK, -1)} if "block" in columns else {})


def said(messages: Sequence[Any], column: str) -> list[dict[str, str]]:
    """The messages of a chat: who, and what."""
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise Refused(f"a message is {{role: ..., content: ...}}, not {message!r:.60}", column)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def chat(messages: Sequence[Mapping[str, str]], answer: bool) -> str:
    """Messages as one text: the role on a line of its own, what was said, a blank line; where the model is to go on,
    the role that answers. A tokenizer that has a template writes them otherwise."""
    text = "".join(f"<{message['role']}>\n{message['content']}\n\n" for message in messages)
    return text + "<assistant>\n" if answer else text


def content(row: Row) -> str:
    text: str = row["text"]
    return text


def target(row: Row) -> str:
    return ""


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
    data = experiment.data
    if pretrained := experiment.model.get("pretrained"):
        processor = load_tokenizer(pretrained, data.max_length)
        return processor, {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id}
    kind: str = data.tokenizer.type
    if kind == "auto":
        kind = exact_tokenizer.choose(row["text"] for row in rows())
    if kind not in ("char", "byte", "bpe"):
        raise ConfigError(f"data.tokenizer.type is {kind}, which cannot write what it read. Known: char, byte, bpe")
    processor = exact_tokenizer.train((row["text"] for row in rows()), kind, data.tokenizer, data.max_length)
    return processor, {
        "vocab_size": len(processor),
        "pad_token_id": processor.pad_token_id,
        "bos_token_id": processor.bos_token_id,
        "eos_token_id": processor.eos_token_id,
        "max_length": data.max_length,
    }


def shaped_by(experiment: Experiment) -> dict[str, Any]:
    from bigmodel import models

    source = experiment.model.get("pretrained")
    if source is None:
        return {}
    files = (VOCABULARY, "tokenizer_config.json", "chat_template.jinja")
    return {"pretrained": source, "files": [models.pretrained.file_digest(source, name) for name in files]}


def load_tokenizer(pretrained: str, max_length: int) -> Any:
    """The tokenizer of a pretrained model, for windows of at most `max_length` tokens, and no more than it can read."""
    from transformers import AutoTokenizer

    from bigmodel import models

    try:
        processor = AutoTokenizer.from_pretrained(models.pretrained.locate(pretrained), trust_remote_code=False)
        readable = models.reads(pretrained)
    except (OSError, ValueError) as e:
        raise ConfigError(f"model.pretrained: '{pretrained}' does not open: {first_line(e)}") from None
    if tokenizer.is_made_up(processor) or not processor.is_fast:
        raise ConfigError(
            f"model.pretrained: '{pretrained}' has no {VOCABULARY}: put the one it was trained with there"
        )
    tokenizer.ensure_padding(processor)
    processor.model_max_length = min(processor.model_max_length, max_length, readable or max_length)
    return processor


def load_processor(path: Path, config: Any = None) -> Any:
    return tokenizer.load(path, config)


encoder = lru_cache(maxsize=4)(exact_tokenizer.Encoder)


def encode(rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
    """Blocks of documents: `input_ids` int32 (T,) with the tokens that begin and end one, `block`, and `num_bytes`, of
    what is predicted. Prompts, which are no blocks: `input_ids` as the tokenizer makes them, and `options`."""
    return [_document(row, processor) if "block" in row else _prompt(row, processor) for row in rows]


def _document(row: Row, processor: Any) -> Sample:
    text, edges = row["text"], row["block"]
    if (ids := _templated(row, processor, answer=False)) is not None:
        return {"input_ids": ids, "block": edges, "num_bytes": len(processor.decode(ids[1:]).encode())}
    ids = encoder(processor)(text)
    begin = [processor.bos_token_id] if edges & BEGINS and processor.bos_token_id is not None else []
    end = [processor.eos_token_id] if edges & ENDS and processor.eos_token_id is not None else []
    num_bytes = len(text.encode())
    if not begin and len(ids):
        num_bytes -= encoder(processor).num_first_bytes(text, ids)
    ids = np.concatenate([np.array(begin, np.int32), ids, np.array(end, np.int32)]) if begin or end else ids
    return {"input_ids": ids, "block": edges, "num_bytes": num_bytes}


def _prompt(row: Row, processor: Any) -> Sample:
    encoder(processor)  # settles how special tokens in a text are read
    ids = _templated(row, processor, answer=True)
    if ids is None:
        ids = processor.backend_tokenizer.encode(row["text"]).ids
    first = processor.bos_token_id if processor.bos_token_id is not None else processor.eos_token_id or 0
    options = {name: row[name] for name in OPTIONS if name in row}
    return {"input_ids": np.array(ids if len(ids) else [first], np.int32)} | ({"options": options} if options else {})


def _templated(row: Row, processor: Any, answer: bool) -> Any:
    """The tokens of a chat by the tokenizer's own template; None of other texts, and where it has none."""
    if not row.get("chat") or not processor.chat_template:
        return None
    try:
        return exact_tokenizer.chat(processor, json.loads(row["chat"]), answer)
    except ValueError as why:
        raise Refused(str(why), "text") from None


def length(sample: Sample) -> int:
    return len(sample["input_ids"])


def examples(samples: Any, experiment: Experiment) -> Examples:
    """Windows of the packed stream: as long as the model reads, at most data.max_length tokens."""
    from bigmodel import models

    longest = experiment.data.max_length
    if pretrained := experiment.model.get("pretrained"):
        longest = min(longest, models.reads(pretrained) or longest)
    blocks = [values for values, _ in samples.column("block")]
    return Packed(samples.column("input_ids"), np.concatenate([*blocks, np.empty(0, np.int64)]), longest)


def augment(sample: Sample, rng: Any, experiment: Experiment, processor: Any, samples: Examples) -> Sample:
    return sample


def collate(samples: Sequence[Sample], processor: Any) -> dict[str, Any]:
    """Windows: `input_ids` (B, T), `targets` (B, T), and `position_ids` (B, T) where several documents meet in one.
    Texts: `input_ids` and `attention_mask` (B, T), padded on the right; what else their samples have."""
    if "starts" in samples[0]:
        return _windows(samples, processor.pad_token_id)
    import torch

    ids, real = texts.padded([sample["input_ids"] for sample in samples], processor.pad_token_id)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
    if "num_bytes" in samples[0]:
        batch["num_bytes"] = torch.tensor([sample["num_bytes"] for sample in samples])
    if any("options" in sample for sample in samples):
        batch["options"] = [sample.get("options", {}) for sample in samples]
    return batch


def _windows(samples: Sequence[Sample], filler: int) -> dict[str, Tensor]:
    import torch

    ids, real = texts.padded([sample["input_ids"] for sample in samples], filler)
    targets = ids[:, 1:].masked_fill(~real[:, 1:], IGNORE_INDEX)
    batch = {"input_ids": ids[:, :-1].contiguous(), "targets": targets}
    if any(len(sample["starts"]) for sample in samples):
        positions = np.tile(np.arange(targets.shape[1] + 1), (len(samples), 1))
        for i, sample in enumerate(samples):
            for start in sample["starts"].tolist():
                positions[i, start:] = np.arange(positions.shape[1] - start)
                targets[i, start - 1] = IGNORE_INDEX  # no document tells how another begins
        batch["position_ids"] = torch.from_numpy(positions[:, :-1].copy())
    return batch


def num_targets(batch: Mapping[str, Tensor]) -> int:
    return int((batch["targets"] != IGNORE_INDEX).sum())


def padded(batch: Mapping[str, Tensor]) -> int:
    return batch["input_ids"].numel()


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    from torch.nn.functional import cross_entropy

    inputs, targets = {"input_ids": batch["input_ids"]}, batch["targets"]
    if "position_ids" in batch:
        if honours_packing(getattr(model, "module", model)):
            inputs["position_ids"] = batch["position_ids"]
        else:
            inputs["input_ids"], targets = unpack(batch)
    logits = model(**inputs, use_cache=False).logits  # (B, T, V)
    return cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=experiment.train.label_smoothing,
    )


def honours_packing(model: Any) -> bool:
    """Whether documents in one window do not see each other where `position_ids` begin anew: tried out once."""
    known: dict[str, bool] = vars(model)
    if "_honours_packing" not in known:
        told = "position_ids" in inspect.signature(model.forward).parameters
        coarse = getattr(model.config.get_text_config(), "alibi", False)  # counts on, over documents, in bf16
        known["_honours_packing"] = told and not coarse and _tried(model)
    return known["_honours_packing"]


def _tried(model: Any) -> bool:
    import torch

    training = model.training
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        model.eval()
        together = model(input_ids=ids, position_ids=torch.arange(8, device=device)[None] % 4, use_cache=False).logits
        alone = model(input_ids=ids[:, 4:], use_cache=False).logits
        model.train(training)
    return bool(torch.allclose(together[:, 4:].float(), alone.float(), atol=1e-3, rtol=1e-2))


def unpack(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each document's part of a window as a row of its own: ids and targets (B', T'), padded on the right."""
    ids, targets, positions = (batch[name] for name in ("input_ids", "targets", "position_ids"))
    parts: list[tuple[Any, Any]] = []
    for i in range(len(ids)):
        starts = [*(positions[i] == 0).nonzero().flatten().tolist(), ids.shape[1]]
        for start, end in zip(starts, starts[1:], strict=False):
            parts.append((ids[i, start:end].cpu().numpy(), targets[i, start:end].cpu().numpy()))
    alone, _ = texts.padded([part for part, _ in parts], 0)
    wanted, _ = texts.padded([part for _, part in parts], IGNORE_INDEX)
    return alone.to(ids.device), wanted.to(ids.device)


def unfit(config: Any) -> str:
    from bigmodel.models import sees_ahead

    if config.is_encoder_decoder:
        return "it reads a text and writes another (is_encoder_decoder)"
    return sees_ahead(config)


def predict(model: Any, batch: Mapping[str, Any], processor: Any) -> list[Answer]:
    real = batch["attention_mask"].bool()
    prompts = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], real, strict=True)]
    options = batch.get("options", [{}] * len(prompts))
    asked = [{"input_ids": ids, "options": chosen} for ids, chosen in zip(prompts, options, strict=True)]
    return complete(model, processor, asked)


def judge(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    """`nats` of a block's tokens, each with at least half of the model's length before it, as far as the block goes;
    how many tokens are predicted, and how many bytes they are."""
    import torch

    size = int(processor.model_max_length)
    windows, owners = [], []
    for i, (ids, real) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
        for window in _overlapping(ids[real].cpu().numpy(), size):
            windows.append(window)
            owners.append(i)
    nats = np.zeros(len(batch["input_ids"]))
    at_once = max(1, JUDGED_AT_ONCE // size)
    for first in range(0, len(windows), at_once):
        chosen = windows[first : first + at_once]
        ids, _ = texts.padded([window for window, _ in chosen], 0)
        wanted, _ = texts.padded([wanted for _, wanted in chosen], IGNORE_INDEX)
        logits = model(input_ids=ids.to(batch["input_ids"].device), use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted.to(logits.device), ignore_index=IGNORE_INDEX, reduction="none"
        )
        np.add.at(nats, owners[first : first + at_once], losses.sum(1).double().cpu().numpy())
    counts = (batch["attention_mask"].sum(1) - 1).clamp(min=0).tolist()
    parts = zip(nats.tolist(), counts, batch["num_bytes"].tolist(), strict=True)
    return [{"nats": nat, "num_targets": count, "num_bytes": num_bytes} for nat, count, num_bytes in parts]


def _overlapping(ids: Any, size: int) -> Iterable[tuple[Any, Any]]:
    """Windows of at most `size` inputs, each half a window on, with the targets that the one before did not have."""
    stride = max(1, size // 2)
    for begin in range(0, max(1, len(ids) - 1), stride):
        window, wanted = ids[begin : begin + size], ids[begin + 1 : begin + size + 1].astype(np.int64)
        window = window[: len(wanted)]
        if not len(window):
            return
        done = size - stride if begin else 0
        wanted[:done] = IGNORE_INDEX
        if len(wanted) > done:
            yield window, wanted
        if begin + size + 1 >= len(ids):
            return


def score(answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
    nats = math.fsum(answer["nats"] for answer in answers)
    num_targets = sum(answer["num_targets"] for answer in answers)
    num_bytes = sum(answer["num_bytes"] for answer in answers)
    loss = nats / max(num_targets, 1)
    return {
        "loss": loss,
        "bits_per_byte": nats / math.log(2) / max(num_bytes, 1),
        "perplexity": math.exp(min(loss, 700)),
    }


def request(processor: Any) -> type[BaseModel]:
    from pydantic import ConfigDict, Field, create_model

    strict = ConfigDict(extra="forbid", strict=True)
    message: Any = create_model("Message", __config__=strict, role=(str, ...), content=(str, ...))
    text: Any = str | Annotated[list[message], Field(min_length=1, fail_fast=True)]
    says = "The text to go on with, or the messages of a chat to be answered."

    def field(kind: Any, says: str, **limits: Any) -> Any:
        return (Annotated[kind, Field(description=says, **limits)] | None, None)

    return create_model(
        "Prompt",
        __config__=strict,
        text=(text, Field(description=says)),
        max_new_tokens=field(int, f"Most tokens of the answer; {DEFAULT_NEW} if not given.", ge=1, le=MOST_NEW),
        temperature=field(float, "0, if not given, takes the likeliest token.", ge=0, le=100, allow_inf_nan=False),
        top_k=field(int, "Only so many of the likeliest tokens; 0 is all.", ge=0),
        top_p=field(float, "Only the likeliest tokens of so much probability.", gt=0, le=1),
        repetition_penalty=field(float, "Above 1 makes tokens rarer that are there already.", ge=0.01, le=100),
        stop=field(
            list[Annotated[str, Field(min_length=1, max_length=100)]], "The answer ends before these.", max_length=8
        ),
        seed=field(int, "Of what is drawn; 0 if not given.", ge=0, lt=2**63),
    )


def asked(fields: Mapping[str, Any], processor: Any) -> Row:
    text = fields["text"]
    row = clean({"text": text if isinstance(text, str) else [dict(message) for message in text]}, {"text": "text"})
    return row | {name: value for name, value in fields.items() if value is not None and name != "text"}


def cost(row: Row, processor: Any) -> int:
    return min(len(row["text"]), int(processor.model_max_length)) + int(row.get("max_new_tokens", DEFAULT_NEW))


def answer(processor: Any) -> type[BaseModel]:
    from pydantic import Field, create_model

    return create_model(
        "Completion",
        text=(str, Field(description="What comes after the given text.")),
        finish_reason=(str, Field(description="stop: the model, or a stop string, ended it; length: max_new_tokens.")),
        tokens=(int, Field(description="Tokens that were written.")),
        truncated=(bool, Field(default=False, description="There and true if only the end of the text was read.")),
    )


def decoder(model: Any, processor: Any, places: int) -> Decoder:
    """What the endpoint streams from."""
    return Decoder(model, processor, places)
