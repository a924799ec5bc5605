"""What the model remembers of each row under way: keys and values, states, or nothing, so that all is read again.

Keys and values stand in one tensor a layer, allocated once and grown seldom, each row at its own length, so nothing is
padded or copied when rows come and go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

NEAR = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that do not see all, and where a config says over how many tokens they do."""


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
