"""Rows completed together, a token at a time: they join and leave between two tokens, and none minds the others.

Keys and values stand in one tensor a layer, allocated once and grown seldom, each row at its own length, so nothing is
padded or copied when rows come and go. Whatever is drawn for a row is drawn from (its seed, number of the token).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from bigmodel.tasks.base import Answer

OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
DEFAULT_NEW, MOST_NEW = 64, 4096
TOGETHER = 64
"""Rows that `complete` has under way."""
NEAR = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that do not see all, and where a config says over how many tokens they do."""
BEFORE = 8
"""Tokens before another that are enough for a tokenizer to know how it is spelt there."""


@dataclass
class Row:
    """A text under way."""

    key: Hashable
    ids: list[int]
    """What the model reads: the end of the prompt, and what was written."""
    options: Mapping[str, Any]
    truncated: bool = False
    new: list[int] = field(default_factory=list)
    said: str = ""
    """Decoded so far, as far as no later token can change it."""
    sent: int = 0
    """Characters of `said` that were handed over."""
    decoder: Any = None
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
        self._rows.append(Row(key, ids, options, len(ids) < len(prompt), decoder=self._stream(ids)))

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
            return self._finish(row, "stop", row.said + self._rest(row))
        row.new.append(token)
        row.ids.append(token)
        row.said += row.decoder(token)
        stop = row.options.get("stop", ())
        full = len(row.new) >= row.options.get("max_new_tokens", DEFAULT_NEW)
        said = row.said + self._rest(row) if full else row.said
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

    def _stream(self, prompt: list[int]) -> Any:
        return Spelling(self.processor, prompt)

    def _rest(self, row: Row) -> str:
        rest: str = row.decoder.rest()
        return rest


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


# ---- what the model remembers of each row


def memory_of(model: Any, longest: int) -> Any:
    """How this architecture remembers texts of so many tokens at most: keys and values, states, or nothing, so that all
    is read again."""
    from bigmodel.models.rnn_lm import RNNForCausalLM

    if isinstance(model, RNNForCausalLM):
        return States(model)
    if _minds_others(model.config.get_text_config(), longest):
        return Nothing()
    known = vars(model)
    if "_remembers" not in known:
        known["_remembers"] = _remembers(model)
    return KeysAndValues(model) if known["_remembers"] else Nothing()


def _minds_others(config: Any, longest: int) -> bool:
    """Whether a row's answer hangs on the longest row beside it, in texts longer than `_remembers` tries out."""
    rope = getattr(config, "rope_parameters", None) or {}
    every = [one for one in (rope, *rope.values()) if isinstance(one, dict)]  # of all layers, or of each kind of them
    switches = [one for one in every if one.get("rope_type") == "longrope"]
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo counts its window from the longest row's end
        return bool(longest > config.window_size)
    if getattr(config, "attn_temperature_tuning", False):  # Llama 4, by the cache's length
        return bool(longest >= config.floor_scale)
    return any(longest > one.get("original_max_position_embeddings", 0) for one in switches)


@contextmanager
def _near(config: Any) -> Iterator[None]:
    """What reaches over some thousand tokens reaches over two, so that a few tokens tell whether it is minded. Nobody
    else may use the model meanwhile."""
    before = {name: reach for name in NEAR.values() if (reach := getattr(config, name, None)) is not None}
    try:
        for name in before:
            setattr(config, name, 2)
        yield
    finally:
        for name, reach in before.items():
            setattr(config, name, reach)


def _remembers(model: Any) -> bool:
    """Whether reading a text but for its last token and then this, beside another row, gives the logits of reading all
    of it: tried out."""
    config = model.config.get_text_config()
    rows = [[token % config.vocab_size for token in ids] for ids in ([1, 2, 3], [5, 7, 11, 13, 17, 19, 23, 29])]
    try:
        with torch.inference_mode(), _near(config):
            cache, nothing = KeysAndValues(model), Nothing()
            expected = [nothing.read(model, 0, ids) for ids in rows]
            for place, ids in enumerate(rows):
                cache.read(model, place, ids[:-1])
            found = cache.write(model, [ids[-1] for ids in rows], [len(ids) - 1 for ids in rows])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False  # an architecture says in its own way that it has no such cache
    return all(np.allclose(a, b, rtol=0, atol=1e-2 * float(np.ptp(b))) for a, b in zip(found, expected, strict=True))


def arrays(logits: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = logits.float().cpu().numpy()
    return found


class KeysAndValues(Cache):
    """Keys and values (places, heads, capacity, width) of every layer, each row at its own length.

    A mask that the model is given ready it takes as it is: how far a layer sees is written into it here.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(layers=[])
        config = model.config.get_text_config()
        reach = {kind: getattr(config, name, None) or math.inf for kind, name in NEAR.items()}
        declared = type(config).__dataclass_fields__  # a Llama made of a Mistral still names the window that it has not
        kinds = [kind for kind, name in NEAR.items() if name in declared and reach[kind] < math.inf]
        kinds = getattr(config, "layer_types", None) or kinds or ["full_attention"]
        self._reach: dict[str, float] = {kind: reach.get(kind, math.inf) for kind in kinds}
        weight = model.get_input_embeddings().weight
        self._device, self._dtype = weight.device, weight.dtype
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._at: Any = None  # where the next token goes: one number, or places and numbers; None: a text is read
        self._place, self._end, self._num = 0, 0, 0

    def read(self, model: Any, place: int, ids: Sequence[int]) -> NDArray[np.float32]:
        """A text from its beginning, into a place. -> logits after it, (V,)"""
        self._place, self._end, self._at = place, len(ids), None
        positions = torch.arange(len(ids), device=self._device)[None]
        (found,) = self._call(model, [list(ids)], self._masks(positions), positions)
        return found

    def write(self, model: Any, last: Sequence[int], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
        """One more token for each of the first places, whose rows have so many. -> logits, (V,) each"""
        self._num, self._end = len(last), max(lengths) + 1
        at = torch.tensor(lengths, device=self._device)
        if min(lengths) + 1 == self._end:  # a slice is written in half the time
            self._at = self._end - 1
        else:
            self._at = torch.arange(self._num, device=self._device), at
        return self._call(model, [[token] for token in last], self._masks(at[:, None]), at[:, None])

    def _masks(self, positions: Tensor) -> Any:
        """What tokens at these positions (B, T) see of their rows, (B, 1, T, end): one mask, or one of each kind of
        layer if there are several. Of the queries' type, made once: of a boolean mask each layer makes its own.
        """
        rows, new = positions.shape
        mask = torch.zeros((rows, 1, new, self._end), dtype=self._dtype, device=self._device)
        masks = dict.fromkeys(self._reach, mask)
        near = {kind: reach for kind, reach in self._reach.items() if reach < self._end}
        if near or not isinstance(self._at, int):  # else each row sees all of itself
            queries, keys = positions[:, None, :, None], torch.arange(self._end, device=self._device)
            mask.masked_fill_(keys > queries, -math.inf)
            for kind, reach in near.items():
                first = queries - queries % reach if kind == "chunked_attention" else queries - reach + 1
                masks[kind] = mask.masked_fill(keys < first, -math.inf)
        return masks if len(masks) > 1 else masks.popitem()[1]

    def _call(self, model: Any, ids: list[list[int]], mask: Any, positions: Tensor) -> list[NDArray[np.float32]]:
        inputs = torch.tensor(ids, device=self._device)
        found = model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, cache=self, use_cache=True, logits_to_keep=1
        )
        return list(arrays(found.logits[:, -1]))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with what it made, (B, heads, T, width). -> all that its queries may see"""
        places = self._place + 1 if self._at is None else self._num
        kept_keys, kept_values = self._kept[layer_idx] = self._room(layer_idx, key_states, value_states, places)
        if self._at is None:
            kept_keys[self._place, :, : self._end] = key_states[0]
            kept_values[self._place, :, : self._end] = value_states[0]
            return key_states, value_states
        return self._put(kept_keys, key_states), self._put(kept_values, value_states)

    def _put(self, kept: Tensor, made: Tensor) -> Tensor:
        """A token more of each row. -> what its query may see"""
        rows, new = kept.narrow(0, 0, self._num), made.select(2, 0)  # these make views in less time than subscripts do
        if isinstance(self._at, int):
            rows.select(2, self._at).copy_(new)
        else:
            row, at = self._at
            rows[row, :, at] = new
        return rows.narrow(2, 0, self._end)

    def _room(self, layer: int, keys: Tensor, values: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Twice as much, where there is not enough."""
        kept = self._kept.get(layer)
        if kept is None:
            kept = tuple(t.new_zeros(1, t.shape[1], 64, t.shape[3]) for t in (keys, values))  # type: ignore[assignment]
        assert kept is not None
        more_places = 0 if places <= len(kept[0]) else max(places, 2 * len(kept[0])) - len(kept[0])
        more_tokens = 0 if self._end <= kept[0].shape[2] else max(self._end, 2 * kept[0].shape[2]) - kept[0].shape[2]
        if not more_places and not more_tokens:
            return kept
        wider = [torch.nn.functional.pad(t, (0, 0, 0, more_tokens, 0, 0, 0, more_places)) for t in kept]
        return wider[0], wider[1]

    def move(self, source: int, to: int) -> None:
        for kept in self._kept.values():
            for tensor in kept:
                tensor[to] = tensor[source]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self._at is None else self._end - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._end, 0


class States:
    """The states of a recurrent model, one a row."""

    def __init__(self, model: Any) -> None:
        self._device = model.get_input_embeddings().weight.device
        self._kept: list[Any] = []

    def read(self, model: Any, place: int, ids: Sequence[int]) -> NDArray[np.float32]:
        found = model(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=True)
        self._kept[place : place + 1] = [found.cache]
        return arrays(found.logits[0, -1])

    def write(self, model: Any, last: Sequence[int], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
        together = type(self._kept[0]).joined(self._kept[: len(last)])
        inputs = torch.tensor([[token] for token in last], device=self._device)
        found = model(input_ids=inputs, cache=together, use_cache=True)
        self._kept[: len(last)] = found.cache.parted()
        return list(arrays(found.logits[:, -1]))

    def move(self, source: int, to: int) -> None:
        self._kept[to] = self._kept[source]


class Nothing:
    """For an architecture whose memory is unknown here: every token is read again, which is slow, and right."""

    def __init__(self) -> None:
        self._texts: dict[int, list[int]] = {}

    def read(self, model: Any, place: int, ids: Sequence[int]) -> NDArray[np.float32]:
        self._texts[place] = list(ids)
        device = model.get_input_embeddings().weight.device
        found = model(input_ids=torch.tensor([self._texts[place]], device=device), use_cache=False)
        return arrays(found.logits[0, -1])

    def write(self, model: Any, last: Sequence[int], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
        return [self.read(model, place, [*self._texts[place], token]) for place, token in enumerate(last)]

    def move(self, source: int, to: int) -> None:
        self._texts[to] = self._texts[source]
