"""The same texts padded in different ways; what a model answers must not tell which."""

from collections.abc import Sequence

import torch
from torch import Tensor

PAD = 0
PADDINGS = ("right", "left", "both sides", "anywhere")


def random_texts(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Token numbers from 2 up: 0 is padding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def batch(texts: Sequence[Sequence[int]], padding: str = "right", extra: int = 3) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T), at least `extra` places of padding a text."""
    width = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        places = _places(len(text), width, padding, torch.Generator().manual_seed(row))
        ids[row, places], mask[row, places] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask}


def _places(length: int, width: int, padding: str, generator: torch.Generator) -> Tensor:
    if padding == "anywhere":
        return torch.randperm(width, generator=generator)[:length].sort().values
    start = {"right": 0, "left": width - length, "both sides": (width - length) // 2}[padding]
    return torch.arange(start, start + length)


@torch.inference_mode()
def alone(model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
    """Logits (B, K), each text asked by itself and without padding."""
    return torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])


@torch.inference_mode()
def together(model: torch.nn.Module, texts: Sequence[Sequence[int]], padding: str) -> Tensor:
    """Logits (B, K) of one padded batch."""
    return model(**batch(texts, padding)).logits
