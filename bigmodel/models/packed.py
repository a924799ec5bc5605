"""Exact, padding-free inference for BERT classifiers: the logits of the model's own forward for a fraction of the work.

Three things are saved. Padding: the tokens of a batch lie in one row of N, and only attention sees sequences. The last
layer: the classifier reads the first token alone, so keys and values are all the last layer computes of the others.
Casting: bf16 weights are made once, not at every call as under autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

from bigmodel.models.lora import is_adapted

# oneDNN makes a kernel for every new shape of a bf16 product, which takes longer than the product: so, few shapes
ROUND_TOKENS, ROUND_ROWS = 32, 8
Pair = tuple[Tensor, Tensor]  # weight, bias


@dataclass(frozen=True)
class Layout:
    """The tokens of a batch in one row: sequences in ascending length, those of one length in one run."""

    order: Tensor  # (B,) the sequences, shortest first
    back: Tensor  # (B,) the inverse of order
    places: Tensor  # (N,) place of each token in its sequence
    first: Tensor  # (B,) or more: where each sequence begins
    runs: list[tuple[int, int]]
    """Sequences in the run, and their length. The last run may be one idle sequence, which nobody asks about."""
    sizes: list[int]
    """Tokens of each run."""


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
        self.words = embeddings.word_embeddings.weight.detach()
        self.places = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
        self.norm = norm(embeddings.LayerNorm)
        self.layers = [self._layer(layer) for layer in bert.encoder.layer]
        self.pooler, self.classifier = self._pair(bert.pooler.dense), self._pair(model.classifier)

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype).contiguous()

    def _pair(self, module: Any) -> Pair:
        return self._cast(module.weight), self._cast(module.bias)

    def _layer(self, layer: Any) -> dict[str, Pair]:
        attention, output = layer.attention.self, layer.attention.output
        parts = (attention.query, attention.key, attention.value)  # one above the other: one product does for all three
        weight, bias = self._cast(torch.cat([p.weight for p in parts])), self._cast(torch.cat([p.bias for p in parts]))
        size = len(attention.query.bias)
        return {
            "query": (weight[:size], bias[:size]),
            "key_value": (weight[size:], bias[size:]),
            "query_key_value": (weight, bias),
            "mixed": self._pair(output.dense),
            "mixed_norm": norm(output.LayerNorm),
            "wide": self._pair(layer.intermediate.dense),
            "narrow": self._pair(layer.output.dense),
            "narrow_norm": norm(layer.output.LayerNorm),
        }

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor,  # (B, T), 0 marks padding, on the right
    ) -> SequenceClassifierOutput:
        with torch.autocast(input_ids.device.type, enabled=False):
            layout = arrange(attention_mask.sum(1), rounded=self.dtype == torch.bfloat16)
            ids = input_ids[layout.order][attention_mask[layout.order].bool()]
            ids = F.pad(ids, (0, len(layout.places) - len(ids)))  # (N,)
            x = self._normed(F.embedding(ids, self.words) + F.embedding(layout.places, self.places), self.norm)
            for layer in self.layers[:-1]:
                x = self._after(layer, self._attend(layer, x, layout), x)  # (N, H)
            last = self.layers[-1]
            x = self._after(last, self._attend_first(last, x, layout), x[layout.first])  # (B, H)
            pooled = torch.tanh(self._linear(x, self.pooler))
            logits = self._linear(pooled, self.classifier)  # (B, K)
            return SequenceClassifierOutput(logits=logits[layout.back])

    def _linear(self, x: Tensor, pair: Pair) -> Tensor:
        return F.linear(x.to(self.dtype), *pair)

    def _normed(self, x: Tensor, norm: Pair) -> Tensor:
        return F.layer_norm(x, norm[0].shape, norm[0], norm[1], self.eps)

    def _after(self, layer: dict[str, Pair], attended: Tensor, x: Tensor) -> Tensor:
        """What follows attention in a layer: mix, add, norm; widen, bend, narrow, add, norm."""
        x = self._normed(self._linear(attended, layer["mixed"]) + x, layer["mixed_norm"])
        wide = self.activation(self._linear(x, layer["wide"]))
        return self._normed(self._linear(wide, layer["narrow"]) + x, layer["narrow_norm"])

    def _attend(self, layer: dict[str, Pair], x: Tensor, layout: Layout) -> Tensor:
        """(N, H) to (N, H): every token looks at its sequence. In fp32, which takes less time than bf16 here."""
        parts = self._linear(x, layer["query_key_value"]).float().split(layout.sizes)
        found = []
        for part, (count, length) in zip(parts, layout.runs, strict=True):
            heads = part.view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, b, heads, T, H / heads)
            attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
            found.append(attended.transpose(1, 2).reshape(part.shape[0], -1))
        return torch.cat(found)

    def _attend_first(self, layer: dict[str, Pair], x: Tensor, layout: Layout) -> Tensor:
        """(N, H) to (B, H): the first token of every sequence looks at its sequence."""
        queries = self._linear(x[layout.first], layer["query"]).float()
        parts = self._linear(x, layer["key_value"]).float().split(layout.sizes)
        found, begin = [], 0
        for part, (count, length) in zip(parts, layout.runs, strict=True):
            if begin == len(layout.order):
                break  # the idle run
            query = queries[begin : begin + count].view(count, self.heads, 1, -1)
            heads = part.view(count, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (2, b, heads, T, H / heads)
            attended = F.scaled_dot_product_attention(query, heads[0], heads[1])
            found.append(attended.reshape(count, -1))
            begin += count
        return torch.cat([*found, queries[begin:]])


def norm(module: Any) -> Pair:
    return module.weight.detach(), module.bias.detach()


def arrange(lengths: Tensor, rounded: bool) -> Layout:
    """Lay out sequences of these lengths (B,). `rounded` adds idle tokens and rows at the end: shapes then repeat."""
    ordered, order = lengths.sort()
    sizes = ordered.tolist()
    runs = [(len(list(same)), length) for length, same in groupby(sizes)]
    places = [np.tile(np.arange(length), count) for count, length in runs]
    if idle := -sum(sizes) % ROUND_TOKENS if rounded else 0:
        runs.append((1, idle))
        places.append(np.zeros(idle, np.int64))  # the model may know fewer places than that
    first = F.pad(ordered.cumsum(0) - ordered, (0, -len(sizes) % ROUND_ROWS if rounded else 0))
    sequence = torch.from_numpy(np.concatenate(places))
    return Layout(order, order.argsort(), sequence, first, runs, [count * length for count, length in runs])


def pack(model: Any, precision: str = "fp32") -> PackedBertForSequenceClassification | None:
    """The packed twin of a model, sharing its fp32 weights; None for what is not a plain BERT classifier on a CPU."""
    config = model.config
    plain = (
        type(model).__name__ == "BertForSequenceClassification"
        and model.device.type == "cpu"
        and not is_adapted(model)
        and not config.is_decoder
        and not config.add_cross_attention
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
        and model.bert.pooler is not None
    )
    return PackedBertForSequenceClassification(model, precision) if plain else None
