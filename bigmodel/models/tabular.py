"""Networks for tables: a perceptron and a transformer over columns. Both read a number piece by piece.

Shapes: B rows, N columns of numbers, C columns of categories, M pieces of a number, D width of a column's vector,
H hidden width, K labels; a regression has K = 1 and answers in the target's own unit.
"""

from collections.abc import Sequence
from dataclasses import field

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel

UNSEEN = 0  # the code of a category that training did not know: its vector is 0


class TabularConfig(PreTrainedConfig):
    """The fields that both share. What the data teaches stands first.

    bins               edges of each number's pieces, in the processor's units
    cardinalities      codes of each column of categories, the unseen one included
    target_mean        of a regression's training rows; the network answers in deviations from it
    target_std         of the same
    embedding_size     width of a column's vector
    initializer_range  deviation of the weights that `init: normal` draws
    """

    bins: list[list[float]] = field(default_factory=list)
    cardinalities: list[int] = field(default_factory=list)
    target_mean: float | int = 0.0
    target_std: float | int = 1.0
    embedding_size: int = 16
    initializer_range: float = 0.02

    def validate_columns(self) -> None:
        if not self.bins and not self.cardinalities:
            raise ValueError("bins and cardinalities are both empty: the table has no column to read")


@strict
class TabularMLPConfig(TabularConfig):
    """Perceptron over the columns' vectors, side by side.

    hidden_size        width of a hidden layer
    num_hidden_layers  hidden layers
    dropout            probability that a hidden unit is dropped
    """

    model_type = "tabular_mlp"

    hidden_size: int = 256
    num_hidden_layers: int = 2
    dropout: float | int = 0.2


@strict
class FTTransformerConfig(TabularConfig):
    """Transformer over the columns' vectors.

    embedding_size       width of a column's vector, through all layers
    num_hidden_layers    layers
    num_attention_heads  heads, which share the width
    intermediate_size    width of the gated layer inside each
    attention_dropout    probability that an attention weight is dropped
    dropout              the same for the gated layer's units
    """

    model_type = "ft_transformer"

    embedding_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    intermediate_size: int = 96
    attention_dropout: float | int = 0.2
    dropout: float | int = 0.1

    def validate_heads(self) -> None:
        if self.embedding_size % self.num_attention_heads:
            raise ValueError(
                f"embedding_size {self.embedding_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )


class PiecewiseLinear(nn.Module):
    """A number as the pieces between its edges: 1 for those it has passed, a fraction for the one it stands in, 0 for
    those ahead; then a linear map of its own (Gorishniy et al., 2022, https://arxiv.org/abs/2203.05556, section 3.2).

    A missing number has a vector of its own instead. Beyond the outer edges a number counts as the edge.
    """

    def __init__(self, bins: Sequence[Sequence[float]], size: int) -> None:
        super().__init__()
        pieces = max(len(edges) - 1 for edges in bins)
        slope, shift = torch.zeros(len(bins), pieces), torch.zeros(len(bins), pieces)
        for row, edges in enumerate(bins):
            start, end = torch.tensor(edges[:-1]), torch.tensor(edges[1:])
            slope[row, : len(start)] = 1 / (end - start)
            shift[row, : len(start)] = -start / (end - start)
        self.register_buffer("slope", slope)  # (N, M); 0 where a column has fewer pieces
        self.register_buffer("shift", shift)
        # a map for each column; as a grouped convolution the schemes of initialisation know it
        self.maps = nn.Conv1d(len(bins) * pieces, len(bins) * size, 1, groups=len(bins))
        self.missing = nn.Embedding(len(bins), size)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, N), NaN where missing -> (B, N, D)."""
        assert isinstance(self.slope, Tensor) and isinstance(self.shift, Tensor) and self.maps.bias is not None
        absent = numbers.isnan()
        known = torch.where(absent, 0.0, numbers)
        pieces = torch.addcmul(self.shift, known[..., None], self.slope).clamp(0, 1)  # (B, N, M)
        columns, width = self.slope.shape
        weight = self.maps.weight.view(columns, -1, width)  # (N, D, M)
        vectors = torch.bmm(pieces.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
        vectors = vectors + self.maps.bias.view(columns, -1)
        return torch.where(absent[..., None], self.missing.weight.to(vectors.dtype), vectors)


class ColumnVectors(nn.Module):
    """A vector for every column of a row; categories have one each, the unseen one 0."""

    def __init__(self, config: TabularConfig, size: int) -> None:
        super().__init__()
        self.numbers = PiecewiseLinear(config.bins, size) if config.bins else None
        self.categories = None
        if config.cardinalities:
            # one table for all columns: each begins with its unseen category
            starts = torch.tensor([0, *config.cardinalities]).cumsum(0)
            self.register_buffer("starts", starts[:-1])
            self.categories = nn.Embedding(sum(config.cardinalities), size)

    def forward(self, numbers: Tensor | None, categories: Tensor | None) -> Tensor:
        """(B, N) and (B, C) -> (B, N + C, D)."""
        parts = []
        if self.numbers is not None:
            assert numbers is not None, "the model needs numbers"
            parts.append(self.numbers(numbers))
        if self.categories is not None:
            assert categories is not None, "the model needs categories"
            assert isinstance(self.starts, Tensor)
            vectors = self.categories(categories + self.starts)
            parts.append(vectors * (categories != UNSEEN)[..., None].to(vectors.dtype))
        return torch.cat(parts, dim=1)


class TabularModel(PreTrainedModel):
    """What perceptron and transformer share: a row's columns in, logits of its labels or a number out.

    `vectors` in place of numbers and categories, as `column_vectors` makes them, are for whoever wants gradients.
    """

    column_vectors: ColumnVectors

    def forward(
        self,
        numbers: Tensor | None = None,  # (B, N) float, NaN where missing
        categories: Tensor | None = None,  # (B, C) codes
        labels: Tensor | None = None,  # (B,) numbers of labels, or the target itself
        vectors: Tensor | None = None,  # (B, N + C, D)
    ) -> SequenceClassifierOutput:
        if vectors is None:
            vectors = self.column_vectors(numbers, categories)
        logits = self.head(self.features(vectors)).float()
        loss = None
        if self.config.problem_type == "regression":
            # float64, as fp32 has steps of 128 near 1.7e9, the seconds of a year such as 2024
            logits = logits.double() * self.config.target_std + self.config.target_mean
            if labels is not None:
                loss = ((logits[:, 0] - labels) / self.config.target_std).square().mean()
        elif labels is not None:
            loss = functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # (B, K)

    def features(self, vectors: Tensor) -> Tensor:
        """(B, N + C, D) -> (B, H)."""
        raise NotImplementedError

    head: nn.Module


class TabularMLPModel(TabularModel):
    """The columns' vectors side by side through a perceptron: "MLP-LR" of Gorishniy et al., 2022
    (https://arxiv.org/abs/2203.05556)."""

    config_class = TabularMLPConfig

    def __init__(self, config: TabularMLPConfig) -> None:
        super().__init__(config)
        size, width = config.embedding_size, config.hidden_size
        self.column_vectors = ColumnVectors(config, size)
        widths = [(len(config.bins) + len(config.cardinalities)) * size, *[width] * config.num_hidden_layers]
        self.layers = nn.ModuleList(nn.Linear(fan_in, width) for fan_in in widths[:-1])
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def features(self, vectors: Tensor) -> Tensor:
        hidden = functional.relu(vectors).flatten(1)
        for layer in self.layers:
            hidden = self.dropout(functional.relu(layer(hidden)))
        return hidden


class FTTransformerModel(TabularModel):
    """Columns as tokens beside one that asks; what it has gathered after the layers is the row
    (Gorishniy et al., 2021, https://arxiv.org/abs/2106.11959), numbers read piece by piece."""

    config_class = FTTransformerConfig

    def __init__(self, config: FTTransformerConfig) -> None:
        super().__init__(config)
        self.column_vectors = ColumnVectors(config, config.embedding_size)
        columns = len(config.bins) + len(config.cardinalities)
        self.places = nn.Embedding(columns + 1, config.embedding_size)  # what a column is; the last one asks
        self.layers = nn.ModuleList(ColumnLayer(config, first=i == 0) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.embedding_size)
        self.head = nn.Linear(config.embedding_size, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def features(self, vectors: Tensor) -> Tensor:
        places = self.places.weight
        asking = places[-1].expand(len(vectors), 1, -1)
        tokens = torch.cat([vectors + places[:-1], asking.to(vectors.dtype)], dim=1)  # (B, N + C + 1, D)
        for layer in self.layers:
            tokens = layer(tokens)
        return functional.relu(self.norm(tokens[:, -1]))


class ColumnLayer(nn.Module):
    """Attention among columns, then a gated layer, each behind a norm (the first attention without) and added."""

    def __init__(self, config: FTTransformerConfig, first: bool) -> None:
        super().__init__()
        size = config.embedding_size
        self.heads = config.num_attention_heads
        self.attention_norm = None if first else nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.gated_norm = nn.LayerNorm(size)
        self.gated, self.back = nn.Linear(size, 2 * config.intermediate_size), nn.Linear(config.intermediate_size, size)
        self.attention_dropout, self.dropout = nn.Dropout(config.attention_dropout), nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(tokens if self.attention_norm is None else self.attention_norm(tokens))
        value, gate = self.gated(self.gated_norm(tokens)).chunk(2, dim=-1)
        gated: Tensor = tokens + self.back(self.dropout(value * functional.relu(gate)))
        return gated

    def attend(self, tokens: Tensor) -> Tensor:
        batch, count, size = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        weights = (q @ k.transpose(-1, -2) * (size // self.heads) ** -0.5).softmax(-1)
        mixed: Tensor = self.out((self.attention_dropout(weights) @ v).transpose(1, 2).reshape(batch, count, size))
        return mixed
