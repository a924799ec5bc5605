"""What an expert would write for each task on one page: tensors in memory, the same batches, fused Adam, autocast.
tasks.py measures against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hand_loop import cosine, learn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
Batch = tuple[dict[str, Tensor], Tensor]
"""The model's arguments, and targets of any shape, of which IGNORED are none."""


def train(
    model: Any,
    get_batch: Callable[[Tensor], Batch],
    order: Sequence[Tensor],
    *,
    lr: float,
    warmup: int,
    precision: str,
    seed: int,
    done: Callable[[], None],
) -> None:
    """Train in place, a batch of the order after the other; `done` is called after each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, len(order), warmup))
    torch.manual_seed(seed)
    model.train()
    device = model.device
    for number, ids in enumerate(order):
        inputs, targets = get_batch(ids)
        if device.type != "cpu":
            inputs = {name: sent(value, device) for name, value in inputs.items()}
            targets = sent(targets, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(**inputs).logits
        loss = cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORED)
        learn(model, loss, optimizer, schedule, number)
        done()


def sent(value: Any, device: torch.device) -> Any:
    return value.pin_memory().to(device, non_blocking=True) if isinstance(value, Tensor) else value


# ---- the batches of each task, from what bigmodel encoded


def images(samples: Any, processor: Any) -> Callable[[Tensor], Batch]:
    """All images scaled once, (N, 3, H, W) float32; the picture of a batch is one look-up."""
    every = samples.take(range(len(samples)))
    height, width = every[0]["height"], every[0]["width"]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    raw = torch.stack([torch.from_numpy(s["pixels"].copy()).view(-1, height, width).expand(3, -1, -1) for s in every])
    pixels = (raw / 255 - mean) / std
    labels = torch.tensor([sample["labels"] for sample in every])
    return lambda ids: ({"pixel_values": pixels[ids]}, labels[ids])


def pairs(samples: Any, processor: Any) -> Callable[[Tensor], Batch]:
    every = samples.take(range(len(samples)))
    sources = [torch.from_numpy(sample["input_ids"].astype("int64")) for sample in every]
    written = [torch.from_numpy(sample["labels"].astype("int64")) for sample in every]
    pad = processor.source.pad_token_id

    def get_batch(ids: Tensor) -> Batch:
        chosen = ids.tolist()
        read = pad_sequence([sources[i] for i in chosen], True, pad)
        begun = pad_sequence([written[i][:-1] for i in chosen], True, processor.target.pad_token_id)
        targets = pad_sequence([written[i][1:] for i in chosen], True, IGNORED)
        inputs = {"input_ids": read, "attention_mask": (read != pad).long(), "decoder_input_ids": begun}
        return inputs | {"use_cache": False}, targets

    return get_batch


def windows(samples: Any, processor: Any) -> Callable[[Tensor], Batch]:
    """The whole text in two tensors, (N, T) each; the last window is filled up."""
    every = samples.take(range(len(samples)))
    assert not any(len(sample["starts"]) for sample in every), "the windows are of one document"
    ids = pad_sequence([torch.from_numpy(s["input_ids"].astype("int64")) for s in every], True, IGNORED)
    inputs, targets = ids[:, :-1].clamp(min=0).contiguous(), ids[:, 1:].contiguous()
    return lambda chosen: ({"input_ids": inputs[chosen], "use_cache": False}, targets[chosen])


def table(samples: Any, processor: Any) -> Callable[[Tensor], Batch]:
    every = samples.take(torch.arange(len(samples)).numpy()).fields
    numbers, categories = torch.tensor(every["numbers"]).float(), torch.tensor(every["categories"]).long()
    labels = torch.tensor(every["labels"]).long()
    return lambda ids: ({"numbers": numbers[ids], "categories": categories[ids]}, labels[ids])


BATCHES = {
    "image-classification": images,
    "translation": pairs,
    "text-generation": windows,
    "tabular-classification": table,
}
