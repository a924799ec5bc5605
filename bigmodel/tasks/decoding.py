"""Rows completed together, a token at a time: they join and leave between two tokens, and none minds the others.

Whatever is drawn for a row is drawn from (its seed, number of the token).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigmodel.tasks.base import Answer
from bigmodel.tasks.memory import memory_of

OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
DEFAULT_NEW, MOST_NEW = 64, 4096
TOGETHER = 64
"""Rows that `complete` has under way."""
BEFORE = 8
"""Tokens before another that are enough for a tokenizer to know how it is spelt there."""


@dataclass
class Row:
    """A text under way."""

    key: Hashable
    ids: list[int]
    """What the model reads: the end of the prompt, and what was written."""
    options: Mapping[str, Any]
    spelling: Spelling
    truncated: bool = False
    new: list[int] = field(default_factory=list)
    said: str = ""
    """Decoded so far, as far as no later token can change it."""
    sent: int = 0
    """Characters of `said` that were handed over."""
    num_read: int = 0
    """Tokens in the cache."""


@dataclass(frozen=True)
class Piece:
    """What came of a row: a piece of its text, and the whole answer if it is the last one."""

    key: Hashable
    text: str
    answer: Answer | None


class Decoder:
    """`join` rows, `step` until each has its answer. Not thread-safe: one thread calls it."""

    def __init__(self, model: Any, processor: Any, places: int = TOGETHER) -> None:
        self.model, self.processor, self.places = model, processor, places
        self.longest = int(processor.model_max_length)
        self._rows: list[Row] = []
        self._num_cached = 0  # the first rows are in the cache, one place each; later ones wait to be read
        self._cache = memory_of(model, self.longest)
        self._device = model.get_input_embeddings().weight.device.type
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def join(self, key: Hashable, sample: Mapping[str, Any]) -> None:
        """A prompt of at least one token, and its options. There must be a free place."""
        assert len(self._rows) < self.places, "there is no free place"
        prompt, options = [int(token) for token in sample["input_ids"]], sample.get("options", {})
        room = self.longest - min(options.get("max_new_tokens", DEFAULT_NEW), self.longest // 2)
        ids = list(prompt[-room:])
        self._rows.append(Row(key, ids, options, Spelling(self.processor, ids), len(ids) < len(prompt)))

    @torch.inference_mode()
    def leave(self, key: Hashable) -> None:
        """Nobody wants this row any more."""
        place = next((i for i, row in enumerate(self._rows) if row.key == key), None)
        if place is not None:
            self._free(place)

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """One token for every row that is there. In fp32: the digits of bf16 depend on what else is in the batch, and
        one of them may turn a token and all that follow."""
        with torch.autocast(self._device, enabled=False):
            return self._step()

    def _step(self) -> list[Piece]:
        rows = self._rows[: self._num_cached]
        logits: list[NDArray[np.float32]] = []
        for i, row in enumerate(rows):
            if row.num_read >= self.longest:  # the window is full: its second half is read again
                row.ids = row.ids[-max(2, self.longest // 2) :]
                row.num_read = 0
                self._cache.read(self.model, i, row.ids[:-1])
                row.num_read = len(row.ids) - 1
        if rows:
            last = [row.ids[-1] for row in rows]
            logits.extend(self._cache.write(self.model, last, [row.num_read for row in rows]))
            for row in rows:
                row.num_read += 1
        for row in self._rows[self._num_cached :]:
            logits.append(self._cache.read(self.model, self._num_cached, row.ids))
            row.num_read = len(row.ids)
            self._num_cached += 1
        pieces = [self._took(row, pick(row, scores)) for row, scores in zip(self._rows, logits, strict=True)]
        for piece in pieces:
            if piece.answer is not None:
                self.leave(piece.key)
        return pieces

    def _free(self, i: int) -> None:
        """The last cached row takes the place: those in the cache stay side by side."""
        if i < self._num_cached:
            self._num_cached -= 1
            last = self._num_cached
            if i < last:
                self._cache.move(last, i)
                self._rows[i] = self._rows[last]
            del self._rows[last]
        else:
            del self._rows[i]

    def _took(self, row: Row, token: int) -> Piece:
        if token in self._ends:
            return self._finish(row, "stop", row.said + row.spelling.rest())
        row.new.append(token)
        row.ids.append(token)
        row.said += row.spelling(token)
        stop = row.options.get("stop", ())
        full = len(row.new) >= row.options.get("max_new_tokens", DEFAULT_NEW)
        said = row.said + row.spelling.rest() if full else row.said
        if (cut := earliest(said, stop, row.sent)) is not None:
            return self._finish(row, "stop", said[:cut])
        if full:
            return self._finish(row, "length", said)
        safe = len(said) - overlap(said, stop)
        text, row.sent = said[row.sent : safe], max(safe, row.sent)
        return Piece(row.key, text, None)

    def _finish(self, row: Row, reason: str, said: str) -> Piece:
        found: Answer = {"text": said, "finish_reason": reason, "tokens": len(row.new)}
        return Piece(row.key, said[row.sent :], found | ({"truncated": True} if row.truncated else {}))


class Spelling:
    """Tokens to text, a token at a time: what the tokenizer makes of the prompt and them, without the prompt."""

    def __init__(self, processor: Any, prompt: Sequence[int]) -> None:
        self._decode = processor.decode
        self._context = list(prompt[-BEFORE:])
        self._said = self._spell([])
        self._ids: list[int] = []

    def _spell(self, ids: list[int]) -> str:
        text: str = self._decode([*self._context, *ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def __call__(self, token: int) -> str:
        """What this token adds; nothing while a character is incomplete."""
        self._ids.append(token)
        text = self._spell(self._ids)
        if text.endswith("\ufffd"):
            return ""
        added = text[len(self._said) :]
        self._context, self._ids, self._said = [*self._context, *self._ids], [], text
        if len(self._context) > 4 * BEFORE:  # cut now and then: to spell again costs as much as the token did
            self._context = self._context[-BEFORE:]
            self._said = self._spell([])
        return added

    def rest(self) -> str:
        """What stands there of a character that was never completed."""
        return self._spell(self._ids)[len(self._said) :] if self._ids else ""


def earliest(said: str, stop: Sequence[str], sent: int) -> int | None:
    """Where the first stop string begins; none before what was handed over can."""
    places = [at for word in stop if (at := said.find(word, sent)) >= 0]
    return min(places, default=None)


def overlap(said: str, stop: Sequence[str]) -> int:
    """The most characters at the end that may be the beginning of a stop string."""
    return max((n for word in stop for n in range(1, len(word)) if said.endswith(word[:n])), default=0)


def complete(model: Any, processor: Any, asked: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The answer to each prompt, in their order."""
    decoder = Decoder(model, processor)
    answers: list[Answer] = [{}] * len(asked)
    waiting = iter(enumerate(asked))
    left = len(asked)
    while left:
        while decoder.num_rows < decoder.places and (following := next(waiting, None)) is not None:
            decoder.join(*following)
        for piece in decoder.step():
            if piece.answer is not None:
                assert isinstance(piece.key, int)
                answers[piece.key] = piece.answer
                left -= 1
    return answers


# ---- which token is next


def pick(row: Row, logits: NDArray[np.float32]) -> int:
    """The next token by the row's options, applied in the order of transformers. (V,) logits, which may be changed."""
    options = row.options
    if (penalty := options.get("repetition_penalty", 1.0)) != 1.0:
        seen = np.unique(row.ids)
        logits = logits.copy()
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    temperature = options.get("temperature", 0.0)
    if not temperature:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # however cold it is, the likeliest stays at 0
        scores = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-scores, kind="stable")
    if top_k := options.get("top_k", 0):
        order = order[:top_k]
    odds = np.exp(scores[order])
    reached = np.cumsum(odds / odds.sum())
    if (top_p := options.get("top_p", 1.0)) < 1.0:
        keep = int(np.searchsorted(reached, top_p)) + 1
        order, odds = order[:keep], odds[:keep]
        reached = np.cumsum(odds / odds.sum())
    drawn = np.random.Generator(np.random.Philox(key=[options.get("seed", 0), len(row.new)])).random()
    return int(order[min(int(np.searchsorted(reached, drawn, "right")), len(order) - 1)])
