"""One text: cleaned from a row, asked for at the endpoint, padded among others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from bigmodel.tasks import tokenizer
from bigmodel.tasks.base import Refused

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

IGNORE_INDEX = -100
"""In place of a token that is no target: torch's own default, and so that of all of transformers."""


def clean(value: Any, column: str) -> str:
    """The text as `normalize` leaves it. Refused if that is nothing, or the value no text."""
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
        raise Refused(f"the text is {found}", column)
    text = tokenizer.normalize(value)
    if not text:
        raise Refused("the text is empty", column)
    if not tokenizer.is_text(text):
        raise Refused("half of a surrogate pair is no character", column)
    return text


def request(says: str) -> type[BaseModel]:
    """The input of a task that is asked with one text; what it `says` of that is in the endpoint's document."""
    from pydantic import AfterValidator, ConfigDict, Field, create_model

    text = Annotated[str, AfterValidator(_not_blank), Field(description=says)]
    return create_model("Text", __config__=ConfigDict(extra="forbid", strict=True), text=(text, ...))


def _not_blank(text: str) -> str:
    if tokenizer.is_blank(text):
        raise ValueError("is empty: give at least one character that is not white space")
    return text


def padded(texts: Sequence[Any], filler: int) -> tuple[Tensor, Tensor]:
    """Ids (T,) of each -> int64 (B, T), padded on the right, and bool (B, T), which of them are real."""
    import torch

    lengths = np.array([len(text) for text in texts])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, filler, dtype=np.int64)
    ids[real] = np.concatenate(texts)
    return torch.from_numpy(ids), torch.from_numpy(real)
