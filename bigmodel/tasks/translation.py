"""translation: a text of one language in, the same of another out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigmodel.errors import CheckpointError, ConfigError, first_line
from bigmodel.evaluation import bleu
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import augment as tokens
from bigmodel.tasks import subwords, texts, tokenizer
from bigmodel.tasks.base import UNREAD, Answer, Examples, Goal, Row, Sample
from bigmodel.tasks.subwords import Languages
from bigmodel.tasks.texts import IGNORE_INDEX

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

    from bigmodel.tasks.translating import Translator

goal = Goal("bleu", "max")
targets = ("target",)
judged_with = ("target",)
unit = "tokens"

LONGEST = 512
"""Tokens read and written where neither tokenizer nor model knows a limit."""


def columns(data: DataConfig) -> dict[str, str]:
    named = {"source": data.source, "target": data.target}
    missing = [f"data.{role}" for role, column in named.items() if column is None]
    if missing:
        raise ConfigError(
            "translation needs the columns of both languages (the words in the braces, of aligned files): "
            f"name {' and '.join(missing)}"
        )
    return {role: column for role, column in named.items() if column is not None}


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {role: texts.clean(record[column], column) for role, column in columns.items()}


def content(row: Row) -> str:
    """The source alone: a sentence that was trained on is no test, however it was translated."""
    text: str = row["source"]
    return text


def target(row: Row) -> str:
    text: str = row["target"]
    return text


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Languages, dict[str, Any]]:
    processor, learnt = _adopt(experiment) if "pretrained" in experiment.model else _learn(rows, experiment)
    if processor.model_max_length <= (ends := processor.source.num_special_tokens_to_add()):
        raise ConfigError(
            f"data.max_length is {processor.model_max_length}, and {ends} tokens enclose each text: name more"
        )
    return processor, learnt


def _learn(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Languages, dict[str, Any]]:
    data, config = experiment.data, experiment.data.tokenizer
    lowercase = config.lowercase is True
    if config.type not in ("auto", "bpe"):
        raise ConfigError(f"data.tokenizer.type is {config.type}: translation writes text, and learns bpe alone")
    sources, written = (row["source"] for row in rows()), (row["target"] for row in rows())
    if config.joint:
        both = subwords.train(chain(sources, written), config, lowercase, data.max_length)
        processor = Languages(both, both)
    else:
        source = subwords.train(sources, config, lowercase, data.max_length)
        processor = Languages(source, subwords.train(written, config, lowercase, data.max_length))
    ids = processor.target
    return processor, {
        "vocab_size": len(processor.source),
        "decoder_vocab_size": len(processor.target),
        "share_encoder_decoder_embeddings": config.joint,
        "pad_token_id": ids.pad_token_id,
        "bos_token_id": ids.bos_token_id,
        "eos_token_id": ids.eos_token_id,
        "forced_eos_token_id": ids.eos_token_id,
        "decoder_start_token_id": ids.bos_token_id,
        "max_length": data.max_length,
    }


def _adopt(experiment: Experiment) -> tuple[Languages, dict[str, Any]]:
    """The tokenizer of a pretrained model, reading no more than that can."""
    from bigmodel import models

    source = experiment.model["pretrained"]
    try:
        processor = subwords.load(Path(models.pretrained.locate(source)), experiment.data.max_length)
        config = models.pretrained.read_config(source)
    except (OSError, ValueError, ImportError) as e:
        raise ConfigError(f"model.pretrained: the tokenizer of '{source}' does not open: {first_line(e)}") from None
    if tokenizer.is_made_up(processor.source):
        raise ConfigError(f"model.pretrained: '{source}' has no tokenizer: put the one it was trained with beside it")
    processor.source.model_max_length = tokenizer.readable(processor.model_max_length, config, LONGEST)
    learnt = {"vocab_size": len(processor.source), "pad_token_id": processor.source.pad_token_id}
    if not (first := _name_languages(processor.source, experiment.model)):
        return processor, {**learnt, "decoder_start_token_id": _start(config, source)}
    start = getattr(config, "decoder_start_token_id", None)
    return processor, {**learnt, "decoder_start_token_id": start, **first, "generation": first}


def _name_languages(ids: Any, model: Mapping[str, Any]) -> dict[str, int]:
    """The tokenizer of a pretrained model told its two languages -> how a translation into the second begins; nothing
    of one that knows no languages."""
    from bigmodel.models.pretrained import LANGUAGES

    source = model["pretrained"]
    if not subwords.is_multilingual(ids):
        for field in (field for field in LANGUAGES if field in model):
            raise ConfigError(f"model.{field}: the tokenizer of '{source}' knows no languages. Leave the field out")
        return {}
    known = subwords.known_languages(ids)
    named = {field: model.get(field) or ids.init_kwargs.get(field) for field in LANGUAGES}
    for field, code in named.items():
        if code is None:
            raise ConfigError(
                f"model.pretrained: '{source}' translates between {len(known)} languages: name model.src_lang and "
                f"model.tgt_lang, such as {', '.join(known[:5])} ..."
            )
        if code not in known:
            near = ", ".join(difflib.get_close_matches(code, known, 5, 0.4) or known[:5])
            raise ConfigError(f"model.{field}: the tokenizer of '{source}' has no '{code}' of {len(known)}: {near} ...")
        setattr(ids, field, code)
    first, last = ids(text_target="")["input_ids"]
    if first == ids.eos_token_id:  # as mBART has it
        return {"decoder_start_token_id": last}
    return {"forced_bos_token_id": first}


def _start(config: Any, source: str) -> int:
    """The token that a decoder begins with."""
    if (start := getattr(config, "decoder_start_token_id", None)) is None:
        raise ConfigError(
            f"model.pretrained: {source}/config.json names no decoder_start_token_id, which begins a text"
        )
    return int(start)


def shaped_by(experiment: Experiment) -> dict[str, Any]:
    from bigmodel import models

    source = experiment.model.get("pretrained")
    if source is None:
        return {}
    folder = Path(models.pretrained.locate(source))
    files = sorted(path for path in folder.glob("*") if path.suffix in (".json", ".model", ".txt", ".spm"))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    languages = {name: experiment.model[name] for name in models.pretrained.LANGUAGES if name in experiment.model}
    return {"pretrained": source, "files": digests, **languages}


def load_processor(path: Path, config: Any = None) -> Languages:
    processor = subwords.load(path)
    if config is not None:
        if tokenizer.is_made_up(processor.source):
            raise CheckpointError(f"{path}: there is no tokenizer: put the one that the model was trained with here")
        if subwords.is_multilingual(processor.source) and processor.source.tgt_lang is None:
            raise CheckpointError(
                f"{path}: its tokenizer knows many languages, and none is named: train it with model.pretrained, "
                "model.src_lang and model.tgt_lang"
            )
        processor.source.model_max_length = tokenizer.readable(processor.model_max_length, config, LONGEST)
    return processor


def encode(rows: Sequence[Row], processor: Languages, learnt: Mapping[str, Any]) -> list[Sample]:
    """`input_ids` int32 (T,), `num_tokens` before the cut; where the rows have a target `labels` int32 (U,) with the
    token first that a decoder begins with."""
    found = processor.encode_source([row["source"] for row in rows])
    samples: list[Sample] = [{"input_ids": ids, "num_tokens": num_tokens} for ids, num_tokens in found]
    if rows and "target" in rows[0]:
        start = np.array([learnt["decoder_start_token_id"]], np.int32)
        written = processor.encode_target([row["target"] for row in rows])
        for sample, ids in zip(samples, written, strict=True):
            sample["labels"] = np.concatenate([start, ids])
    return samples


def length(sample: Sample) -> int:
    return len(sample["input_ids"])


def examples(samples: Examples, experiment: Experiment) -> Examples:
    return Pairs(samples)


class Pairs:
    """Samples with the lengths of both sides, (N, 2)."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.lengths = np.stack([_sizes(samples, "input_ids"), _sizes(samples, "labels") - 1], axis=1)

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, ids: Any) -> list[Sample]:
        found: list[Sample] = self._samples.take(ids)
        return found

    def rows(self, ids: Any) -> Any:
        return ids


def _sizes(samples: Any, name: str) -> Any:
    """How long the arrays of a field are: (N,)."""
    return np.concatenate([np.diff(offsets).astype(np.int32) for _, offsets in samples.column(name)])


def augment(
    sample: Sample, rng: np.random.Generator, experiment: Experiment, processor: Languages, samples: Examples
) -> Sample:
    """Of the source; its end stays."""
    rates, ids = experiment.data.augment, sample["input_ids"]
    inner, ends = ids[:-1], ids[-1:]
    if rates.token_dropout:
        inner = tokens.token_dropout(inner, rng, rates.token_dropout)
    if rates.swap:
        inner = tokens.swap(inner, rng, rates.swap)
    if rates.mask:
        inner = tokens.mask(inner, rng, rates.mask, processor.source.unk_token_id)
    return {**sample, "input_ids": np.concatenate([inner, ends])}


def collate(samples: Sequence[Sample], processor: Languages) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` int64 (B, T); `decoder_input_ids`, `labels` int64 (B, U), where what is no target
    is -100. All padded on the right."""
    ids, real = texts.padded([sample["input_ids"] for sample in samples], processor.source.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": real.long()}
    if "labels" not in samples[0]:
        return batch
    begun, _ = texts.padded([sample["labels"][:-1] for sample in samples], processor.target.pad_token_id)
    labels, _ = texts.padded([sample["labels"][1:] for sample in samples], IGNORE_INDEX)
    return batch | {"decoder_input_ids": begun, "labels": labels}


def num_targets(batch: Mapping[str, Tensor]) -> int:
    return int((batch["labels"] != IGNORE_INDEX).sum())


def padded(batch: Mapping[str, Tensor]) -> int:
    return batch["input_ids"].numel() + batch["labels"].numel()


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """(B, U, V)"""
    logits: Tensor = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=batch["decoder_input_ids"],
        use_cache=False,
    ).logits
    return logits


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    from torch.nn.functional import cross_entropy

    logits = _logits(model, batch)
    return cross_entropy(
        logits.flatten(0, 1).float(),
        batch["labels"].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=experiment.train.label_smoothing,
    )


def unfit(config: Any) -> str:
    return "" if config.is_encoder_decoder else "it has no encoder (is_encoder_decoder is false)"


def predict(model: Any, batch: Mapping[str, Tensor], processor: Languages) -> list[Answer]:
    """Greedy, or by beams, as the model's generation_config says. In fp32: the digits of bf16 depend on what else is in
    the batch, and one of them may turn a word and all that follow."""
    import torch

    with torch.autocast(batch["input_ids"].device.type, enabled=False):
        written = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_length=processor.model_max_length + 1,
        )
    return [{"translation": text} for text in processor.decode(written)]


def judge(model: Any, batch: Mapping[str, Tensor], processor: Languages) -> list[Answer]:
    """With `loss`, the sum over the target's tokens in nats, not smoothed, and `target_tokens`, their number."""
    from torch.nn.functional import cross_entropy

    logits, labels = _logits(model, batch), batch["labels"]  # (B, U, V), (B, U)
    losses = cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
    counts = (labels != IGNORE_INDEX).sum(1)
    told = zip(losses.double().sum(1).tolist(), counts.tolist(), strict=True)
    return [
        {**answer, "loss": total, "target_tokens": count}
        for answer, (total, count) in zip(predict(model, batch, processor), told, strict=True)
    ]


def score(answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
    """Loss in nats a target token, where the answers come from `judge`; BLEU, chrF, and BLEU of lower-cased tokens."""
    found, wanted = [answer["translation"] for answer in answers], [row["target"] for row in rows]
    scores = bleu.scores(found, wanted)
    if "loss" in answers[0]:
        loss = sum(answer["loss"] for answer in answers) / sum(answer["target_tokens"] for answer in answers)
        scores = {"loss": loss, **scores}
    return scores


def request(processor: Languages) -> type[BaseModel]:
    return texts.request("The text to translate.")


def asked(fields: Mapping[str, Any], processor: Languages) -> Row:
    return {"source": texts.clean(fields["text"], "text")}


def cost(row: Row, processor: Languages) -> int:
    """The characters of the text, or what the model reads of one."""
    return min(len(row["source"]), processor.model_max_length)


def decoder(model: Any, processor: Languages, places: int) -> Translator:
    """What the endpoint streams from."""
    from bigmodel.tasks.translating import Translator

    return Translator(model, processor, places)


def answer(processor: Languages) -> type[BaseModel]:
    from pydantic import Field, create_model

    return create_model(
        "Translation",
        translation=(str, Field(description="The text in the other language.")),
        **UNREAD,
    )
