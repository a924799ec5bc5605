"""Translations a token at a time, as the endpoint streams them: each row is read alone, with transformers' own rules.

A step reads again what was written of a row, which any architecture can do, and is what `generate` says with its cache.
Where several beams are followed nothing is certain before the end: the translation then comes whole, in one piece.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteriaList

from bigmodel.tasks.base import Answer, unread
from bigmodel.tasks.decoding import Piece
from bigmodel.tasks.subwords import Languages


@dataclass
class Row:
    """A text under way."""

    key: Hashable
    inputs: dict[str, Tensor]
    """What `generate` is given: the text, later what the encoder made of it, and what was written."""
    read: Answer
    """What the answer says of a text that was cut."""
    sent: str = ""


class Translator:
    """`join` rows, `step` until each has its answer. Not thread-safe: one thread calls it."""

    def __init__(self, model: Any, processor: Languages, places: int) -> None:
        self.model, self.processor, self.places = model, processor, places
        self._rows: dict[Hashable, Row] = {}
        self._whole = (model.generation_config.num_beams or 1) > 1
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def join(self, key: Hashable, sample: Mapping[str, Any]) -> None:
        """A text. There must be a free place."""
        assert self.num_rows < self.places, "there is no free place"
        ids = torch.tensor([sample["input_ids"].tolist()], device=self.model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self._rows[key] = Row(key, inputs, unread(sample, ids.shape[1]))

    def leave(self, key: Hashable) -> None:
        """Nobody wants this row any more."""
        self._rows.pop(key, None)

    def step(self) -> list[Piece]:
        """One token for every row that is there; of several beams, the whole of one row. In fp32, as `predict`."""
        rows = list(self._rows.values())[: 1 if self._whole else None]
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            pieces = [self._written(row) for row in rows]
        for piece in pieces:
            if piece.answer is not None:
                self.leave(piece.key)
        return pieces

    def _written(self, row: Row) -> Piece:
        most = self.processor.model_max_length + 1
        if self._whole:
            ids, ended = self.model.generate(**row.inputs, max_length=most), True
        else:
            if "input_ids" in row.inputs:
                self._begin(row)
            ids = self.model.generate(**row.inputs, max_length=most, stopping_criteria=AFTER_ONE)
            ended = ids.shape[1] >= most or int(ids[0, -1]) in self._ends
            row.inputs["decoder_input_ids"] = ids
        (text,) = self.processor.decode(ids)
        known = ended or not text.endswith("\ufffd")  # the sign of a character that is not whole yet
        more = text[len(row.sent) :] if known and text.startswith(row.sent) else ""
        row.sent += more
        return Piece(row.key, more, {"translation": text, **row.read} if ended else None)

    def _begin(self, row: Row) -> None:
        start = self.model.generation_config.decoder_start_token_id
        ids = row.inputs.pop("input_ids")
        row.inputs["encoder_outputs"] = self.model.get_encoder()(ids, attention_mask=row.inputs["attention_mask"])
        row.inputs["decoder_input_ids"] = ids.new_full((1, 1), start)


def after_one(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
    """A stopping criterion of transformers: every row ends with the token that it just got."""
    return torch.ones(len(ids), dtype=torch.bool, device=ids.device)


AFTER_ONE = StoppingCriteriaList([after_one])
