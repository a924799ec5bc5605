"""Exact, padding-free inference for BERT classifiers: the same logits as the model's own forward, for a fraction of the work.

Three things are saved. Padding: the tokens of a batch lie in one row of N, and only attention sees sequences. The last layer:
the classifier reads the first token alone, so keys and values are all the last layer computes of the others. Casting: bf16
weights are made once, not at every call as under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

# oneDNN makes a kernel for every new shape of a bf16 product, which takes longer than the product: so, few shapes
ROUND_TOKENS, ROUND_ROWS = 32, 8


@dataclass(frozen=True)
class Group:
    """Sequences of similar length, which attention takes together. Rows are positions in the padded order of all groups."""

    rows: slice
    batch: int
    longest: int
    mask: Tensor | None  # (b, 1, 1, T), False marks padding; None where all are equally long


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are: packed (N,), and padded by group for attention (M,)."""

    positions: Tensor  # (N,) place of each token in its sequence
    first: Tensor  # (B,) where each sequence begins
    padded: Tensor  # (M,) packed index of each padded place; padding points anywhere
    packed: Tensor  # (N,) padded index of each packed place
    order: Tensor  # (B,) place of each sequence in the groups' order
    groups: list[Group]


class PackedBertForSequenceClassification(nn.Module):
    """Called like the model it is made from, in inference only. (B, T) ids, right-padded, to (B, K) logits."""

    def __init__(self, model: Any, precision: str) -> None:
        super().__init__()
        self.config = config = model.config
        bert = model.bert
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.activation = ACT2FN[config.hidden_act]
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        embeddings = bert.embeddings
        self.words = self._cast(embeddings.word_embeddings.weight)
        self.places = self._cast(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])
        self.norm = self._pair(embeddings.LayerNorm)
        self.layers = [self._layer(layer) for layer in bert.encoder.layer]
        self.pooler, self.classifier = self._pair(bert.pooler.dense), self._pair(model.classifier)

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype).contiguous()

    def _pair(self, *modules: Any) -> tuple[Tensor, Tensor]:
        """Weight and bias; of several modules, one above the other, so that one product does for all."""
        return (
            self._cast(torch.cat([module.weight for module in modules])),
            self._cast(torch.cat([module.bias for module in modules])),
        )

    def _layer(self, layer: Any) -> dict[str, tuple[Tensor, Tensor]]:
        attention, output = layer.attention.self, layer.attention.output
        return {
            "query": self._pair(attention.query),
            "key_value": self._pair(attention.key, attention.value),
            "query_key_value": self._pair(attention.query, attention.key, attention.value),
            "mixed": self._pair(output.dense),
            "mixed_norm": self._pair(output.LayerNorm),
            "wide": self._pair(layer.intermediate.dense),
            "narrow": self._pair(layer.output.dense),
            "narrow_norm": self._pair(layer.output.LayerNorm),
        }

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor,  # (B, T), 0 marks padding, on the right
    ) -> SequenceClassifierOutput:
        with torch.autocast(input_ids.device.type, enabled=False):
            lengths = attention_mask.sum(1).tolist()
            layout = arrange(lengths, rounded=self.dtype == torch.bfloat16)
            ids = F.pad(input_ids[attention_mask.bool()], (0, len(layout.positions) - sum(lengths)))  # (N,)
            x = self._normed(F.embedding(ids, self.words) + F.embedding(layout.positions, self.places), self.norm)
            for layer in self.layers[:-1]:
                x = self._after(layer, self._attend(layer, x, layout), x)  # (N, H)
            last = self.layers[-1]
            x = self._after(last, self._attend_first(last, x, layout), x[layout.first])  # (B, H)
            logits = F.linear(torch.tanh(F.linear(x, *self.pooler)), *self.classifier)  # (B, K)
            return SequenceClassifierOutput(logits=logits[: len(lengths)])  # type: ignore[arg-type]

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, norm[0].shape, norm[0], norm[1], self.eps)

    def _after(self, layer: dict[str, tuple[Tensor, Tensor]], attended: Tensor, x: Tensor) -> Tensor:
        """What follows attention in a layer: mix, add, norm; widen, bend, narrow, add, norm."""
        x = self._normed(F.linear(attended, *layer["mixed"]) + x, layer["mixed_norm"])
        wide = self.activation(F.linear(x, *layer["wide"]))
        return self._normed(F.linear(wide, *layer["narrow"]) + x, layer["narrow_norm"])

    def _attend(self, layer: dict[str, tuple[Tensor, Tensor]], x: Tensor, layout: Layout) -> Tensor:
        """(N, H) to (N, H): every token looks at its sequence."""
        padded = F.linear(x, *layer["query_key_value"])[layout.padded]  # (M, 3H)
        found = []
        for group in layout.groups:
            parts = padded[group.rows].view(group.batch, group.longest, 3, self.heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (b, heads, T, H / heads)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            found.append(attended.transpose(1, 2).reshape(-1, x.shape[-1]))
        return torch.cat(found)[layout.packed]

    def _attend_first(self, layer: dict[str, tuple[Tensor, Tensor]], x: Tensor, layout: Layout) -> Tensor:
        """(N, H) to (B, H): the first token of every sequence looks at its sequence."""
        queries = F.linear(x[layout.first], *layer["query"])[layout.order]  # (B, H), in the groups' order
        padded = F.linear(x, *layer["key_value"])[layout.padded]  # (M, 2H)
        found, begin = [], 0
        for group in layout.groups:
            parts = padded[group.rows].view(group.batch, group.longest, 2, self.heads, -1)
            key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
            query = queries[begin : begin + group.batch].view(group.batch, self.heads, 1, -1)
            begin += group.batch
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            found.append(attended.reshape(group.batch, -1))
        back = torch.empty_like(layout.order)
        back[layout.order] = torch.arange(len(back))
        return torch.cat([*found, queries[begin:]])[back]


def arrange(lengths: Sequence[int], rounded: bool) -> Layout:
    """Lay out sequences of these lengths. `rounded` adds idle tokens and rows, so that shapes repeat."""
    begins = [0]
    for length in lengths:
        begins.append(begins[-1] + length)
    idle = -begins[-1] % ROUND_TOKENS if rounded else 0
    idle_rows = -len(lengths) % ROUND_ROWS if rounded else 0
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    positions = torch.zeros(begins[-1] + idle, dtype=torch.long)
    packed = torch.zeros(begins[-1] + idle, dtype=torch.long)
    groups, padded, filled = [], [], 0
    for members in neighbours(order, lengths):
        longest = lengths[members[-1]]
        places = torch.arange(longest)
        starts = torch.tensor([begins[i] for i in members])
        sizes = torch.tensor([lengths[i] for i in members])
        real = places < sizes[:, None]  # (b, T)
        index = starts[:, None] + places.where(real, torch.zeros_like(places))  # (b, T)
        rows = slice(filled, filled + index.numel())
        flat, kept = index.flatten(), real.flatten()
        positions[flat[kept]] = places.expand_as(real).flatten()[kept]
        packed[flat[kept]] = torch.arange(rows.start, rows.stop)[kept]
        mask = None if lengths[members[0]] == longest else real[:, None, None]
        groups.append(Group(rows, len(members), longest, mask))
        padded.append(flat)
        filled = rows.stop
    first = torch.tensor(begins[:-1] + [0] * idle_rows)
    extra = list(range(len(lengths), len(lengths) + idle_rows))
    return Layout(positions, first, torch.cat(padded), packed, torch.tensor(order + extra), groups)


def neighbours(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Sequences in ascending length, cut where one would be more than half as long again as its group's first, plus 8."""
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[i] <= 1.5 * lengths[groups[-1][0]] + 8:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pack(model: Any, precision: str = "fp32") -> PackedBertForSequenceClassification | None:
    """The packed twin of a model, sharing its fp32 weights; None for what is not a plain BERT classifier on a CPU."""
    config = model.config
    plain = (
        type(model).__name__ == "BertForSequenceClassification"
        and model.device.type == "cpu"
        and not config.is_decoder
        and not config.add_cross_attention
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and model.bert.pooler is not None
    )
    return PackedBertForSequenceClassification(model, precision) if plain else None
