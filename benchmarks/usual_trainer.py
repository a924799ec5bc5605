"""transformers.Trainer as its documentation shows it, with the settings that make it fastest. tasks.py measures it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

IGNORED = -100


class Marks(TrainerCallback):  # type: ignore[misc]
    """Tells of the end of each step."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.done()


def train(parts: Any, work: Any, done: Callable[[], None]) -> list[int]:
    """Train in place; `done` is called after each step. -> how many rows or real tokens each had"""
    paired = parts.job.task == "translation"
    amounts = list[int]()
    (Seq2SeqTrainer if paired else Trainer)(
        parts.model,
        arguments(parts, work, paired),
        train_dataset=DATASETS[parts.job.task](parts.samples, parts.processor),
        data_collator=counting(collator(parts, paired), work.unit == "tokens", amounts),
        processing_class=parts.processor.source if paired else None,
        callbacks=[Marks(done)],
    ).train()
    return amounts


def arguments(parts: Any, work: Any, paired: bool) -> Any:
    """Fused AdamW without weight decay is Adam; a data loader without workers is faster for data in memory."""
    return (Seq2SeqTrainingArguments if paired else TrainingArguments)(
        output_dir=str(Path(parts.job.folder) / "trainer"),
        use_cpu=parts.job.device == "cpu",
        bf16=parts.job.precision == "bf16",
        per_device_train_batch_size=work.batch_size,
        num_train_epochs=parts.job.epochs,
        learning_rate=work.lr,
        lr_scheduler_type="cosine",
        warmup_steps=parts.warmup,
        max_grad_norm=1.0,
        seed=parts.job.seed,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        dataloader_num_workers=0,
        **({"train_sampling_strategy": "group_by_length"} if paired else {}),
    )


def collator(parts: Any, paired: bool) -> Callable[[Any], Any]:
    if paired:
        return DataCollatorForSeq2Seq(parts.processor.source, parts.model)
    return default_data_collator


def counting(collate: Callable[[Any], Any], tokens: bool, amounts: list[int]) -> Callable[[Any], Any]:
    def counted(samples: Any) -> Any:
        batch = collate(samples)
        labels = batch["labels"]
        real = (
            (labels != IGNORED).sum() + batch["attention_mask"].sum() if "attention_mask" in batch else labels.numel()
        )
        amounts.append(int(real) if tokens else len(labels))
        return batch

    return counted


# ---- the samples that bigmodel encoded, as the Trainer wants them


def images(samples: Any, processor: Any) -> list[dict[str, Any]]:
    import hand_tasks

    get_batch = hand_tasks.images(samples, processor)
    inputs, labels = get_batch(torch.arange(len(samples)))
    return [{"pixel_values": p, "labels": k} for p, k in zip(inputs["pixel_values"], labels.tolist(), strict=True)]


def pairs(samples: Any, processor: Any) -> list[dict[str, Any]]:
    every = samples.take(range(len(samples)))
    return [{"input_ids": s["input_ids"].tolist(), "labels": s["labels"][1:].tolist()} for s in every]


def windows(samples: Any, processor: Any) -> list[dict[str, Any]]:
    """Packed windows with the token that is only a target: the model shifts them itself."""
    every = [s["input_ids"].astype("int64") for s in samples.take(range(len(samples)))]
    last = every[-1]
    every[-1] = every[-2] if len(last) < len(every[0]) else last  # a short one would need padding
    return [{"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(ids)} for ids in every]


def table(samples: Any, processor: Any) -> list[dict[str, Any]]:
    return [
        {name: torch.as_tensor(s[name]) for name in ("numbers", "categories")} | {"labels": int(s["labels"])}
        for s in samples.take(torch.arange(len(samples)).numpy())
    ]


DATASETS = {
    "image-classification": images,
    "translation": pairs,
    "text-generation": windows,
    "tabular-classification": table,
}
