"""text-classification: a text in, one label of a fixed set out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigmodel.errors import ConfigError, DataError, first_line
from bigmodel.evaluation.metrics import accuracy, log_loss, macro_f1
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import augment as tokens
from bigmodel.tasks import labels, texts, tokenizer
from bigmodel.tasks.base import UNREAD, Answer, Examples, Goal, Row, Sample
from bigmodel.tasks.labels import clean_label, fit_labels, label_id, named
from bigmodel.tasks.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

goal = Goal("accuracy", "max")
targets = ("label",)
judged_with = ()
unit = "tokens"


def columns(data: DataConfig) -> dict[str, str]:
    named = {"text": data.text, "label": data.label}
    missing = [f"data.{role}" for role, column in named.items() if column is None]
    if missing:
        raise ConfigError(f"text-classification needs the columns of text and label: name {' and '.join(missing)}")
    return {role: column for role, column in named.items() if column is not None}


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    row: Row = {"text": texts.clean(record[columns["text"]], columns["text"])}
    if "label" in columns:
        row["label"] = clean_label(record[columns["label"]], columns["label"])
    return row


def content(row: Row) -> str:
    text: str = row["text"]
    return text


def target(row: Row) -> str:
    label: str = row["label"]
    return label


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
    data = experiment.data
    labels = Counter(row["label"] for row in rows())
    learnt = fit_labels(labels, data.label or "label")
    processor, more = _fit_tokenizer(rows, labels.total(), experiment)
    if processor.model_max_length <= (ends := processor.num_special_tokens_to_add()):
        raise ConfigError(
            f"data.max_length is {processor.model_max_length}, and {ends} tokens enclose each text: name more"
        )
    return processor, learnt | more


def _fit_tokenizer(
    rows: Callable[[], Iterable[Row]], num_rows: int, experiment: Experiment
) -> tuple[Any, dict[str, Any]]:
    data = experiment.data
    if pretrained := experiment.model.get("pretrained"):
        processor = load_tokenizer(pretrained, data.max_length)
        return processor, {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id}
    from bigmodel.models import is_ours

    some = tokenizer.some((row["text"] for row in rows()), num_rows, data.tokenizer.max_texts)
    kind = tokenizer.choose(row["text"] for row in rows()) if data.tokenizer.type == "auto" else data.tokenizer.type
    enclose = not is_ours(experiment.model)
    processor = tokenizer.train(some, kind, data.tokenizer, enclose, data.max_length)
    if tokenizer.is_made_up(processor):
        least = data.tokenizer.min_frequency
        raise DataError(f"column '{data.text}': no token occurs data.tokenizer.min_frequency={least} times: name less")
    return processor, {
        "vocab_size": len(processor),
        "pad_token_id": processor.pad_token_id,
        "bos_token_id": processor.cls_token_id,
        "eos_token_id": processor.sep_token_id,
        "max_length": data.max_length,
    }


def shaped_by(experiment: Experiment) -> dict[str, Any]:
    """The samples of all our models are the same; encoders enclose a text, pretrained ones have their own."""
    from bigmodel import models

    source = experiment.model.get("pretrained")
    if source is None:
        return {"enclosed": not models.is_ours(experiment.model)}
    return {"pretrained": source, "vocabulary": models.pretrained.file_digest(source, VOCABULARY)}


def load_tokenizer(pretrained: str, max_length: int) -> Any:
    """The tokenizer of a pretrained model, reading at most `max_length` tokens, and no more than the model can."""
    from transformers import AutoTokenizer

    from bigmodel import models

    try:
        processor = AutoTokenizer.from_pretrained(models.pretrained.locate(pretrained), trust_remote_code=False)
        readable = models.reads(pretrained)
    except (OSError, ValueError) as e:
        reason = first_line(e)
        raise ConfigError(
            f"model.pretrained: '{pretrained}' is no model directory and no hub name to be had: {reason}"
        ) from None
    if tokenizer.is_made_up(processor):
        raise ConfigError(
            f"model.pretrained: '{pretrained}' has no tokenizer: put the one it was trained with beside it"
        )
    if not processor.is_fast:
        raise ConfigError(f"model.pretrained: '{pretrained}' has a slow tokenizer; one with a {VOCABULARY} is needed")
    tokenizer.ensure_padding(processor)
    return tokenizer.adopt(processor, min(processor.model_max_length, max_length, readable or max_length))


def load_processor(path: Path, config: Any = None) -> Any:
    """Of a model, whose config is given and learns which token pads: by it a decoder finds the last of a text."""
    processor = tokenizer.load(path, config)
    if config is None:
        return processor
    if tokenizer.is_foreign(processor):
        processor.backend_tokenizer.encode_special_tokens = True  # "</s>" in a text is text
    text_config = config.get_text_config()
    if getattr(text_config, "pad_token_id", None) is None:
        text_config.pad_token_id = processor.pad_token_id
    return processor


def encode(rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
    """`input_ids` int32 (T,), `num_tokens` before the cut; `labels` where the rows have one."""
    samples: list[Sample] = []
    for row, (ids, num_cut) in zip(rows, tokenizer.read([row["text"] for row in rows], processor), strict=True):
        sample: Sample = {"input_ids": np.array(ids, dtype=np.int32), "num_tokens": len(ids) + num_cut}
        if "label" in row:
            sample["labels"] = label_id(row["label"], learnt["label2id"])
        samples.append(sample)
    return samples


def length(sample: Sample) -> int:
    return len(sample["input_ids"])


def examples(samples: Examples, experiment: Experiment) -> Examples:
    return samples


def augment(
    sample: Sample, rng: np.random.Generator, experiment: Experiment, processor: Any, samples: Examples
) -> Sample:
    rates, ids = experiment.data.augment, sample["input_ids"]
    enclosed = len(ids) > 2 and ids[0] == processor.cls_token_id
    inner = ids[1:-1] if enclosed else ids
    if rates.token_dropout:
        inner = tokens.token_dropout(inner, rng, rates.token_dropout)
    if rates.swap:
        inner = tokens.swap(inner, rng, rates.swap)
    if rates.mask:
        inner = tokens.mask(inner, rng, rates.mask, processor.unk_token_id)
    return {**sample, "input_ids": np.concatenate([ids[:1], inner, ids[-1:]]) if enclosed else inner}


def collate(samples: Sequence[Sample], processor: Any) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` int64 (B, T), padded on the right; `labels` int64 (B,)."""
    import torch

    ids, real = texts.padded([sample["input_ids"] for sample in samples], processor.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": real.long()}
    if "labels" in samples[0]:
        batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
    return batch


def num_targets(batch: Mapping[str, Tensor]) -> int:
    return len(batch["input_ids"])


def padded(batch: Mapping[str, Tensor]) -> int:
    return batch["input_ids"].numel()


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # (B, K)
    smoothing = experiment.train.label_smoothing
    return cross_entropy(logits.float(), batch["labels"], reduction="sum", label_smoothing=smoothing)


def unfit(config: Any) -> str:
    if config.problem_type == "multi_label_classification":
        return "it answers with any number of its labels (problem_type multi_label_classification), not with one"
    if config.problem_type == "regression" or config.num_labels < 2:
        return "it answers with a number, as a regression does, not with one of several labels"
    return ""


def predict(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return labels.answers(logits, model.config.id2label)


judge = predict


def score(answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
    found, wanted = named(answers), named(rows)
    return {
        "loss": log_loss((answer["scores"] for answer in answers), wanted),
        "accuracy": accuracy(found, wanted),
        "macro_f1": macro_f1(found, wanted),
    }


def request(processor: Any) -> type[BaseModel]:
    return texts.request("The text to classify.")


def asked(fields: Mapping[str, Any], processor: Any) -> Row:
    return dict(fields)


def cost(row: Row, processor: Any) -> int:
    """The characters of the text, or what the model reads of one."""
    return min(len(row["text"]), int(processor.model_max_length))


def answer(processor: Any) -> type[BaseModel]:
    return labels.answer_model(**UNREAD)
