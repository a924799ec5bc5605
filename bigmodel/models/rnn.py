"""Recurrent text classifiers: LSTM and GRU, one or two directions, any number of layers.

Shapes: B texts, T tokens, E embedding, H state of one direction, D directions, K labels. Time comes first inside.
"""

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel


class RNNConfig(PreTrainedConfig):
    """The fields that LSTM and GRU share.

    embedding_size     width of a token's vector
    hidden_size        width of the state of one direction
    num_hidden_layers  layers, each reading the states of the one below
    bidirectional      also read from the end
    pooling            what the classifier sees of the states: last (of each direction), mean or max over the tokens
    embedding_dropout  probability that a component of a token's vector is dropped
    dropout            the same for the states, between layers and before the classifier
    initializer_range  deviation of the weights that `init: normal` draws
    """

    vocab_size: int = 30_000
    embedding_size: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 1
    bidirectional: bool = True
    pooling: Literal["last", "mean", "max"] = "max"
    embedding_dropout: float | int = 0.0
    dropout: float | int = 0.3
    pad_token_id: int | None = 0
    initializer_range: float = 0.02


@strict
class LSTMConfig(RNNConfig):
    """LSTM text classifier."""

    model_type = "lstm"


@strict
class GRUConfig(RNNConfig):
    """GRU text classifier."""

    model_type = "gru"


class RNNForSequenceClassification(PreTrainedModel):
    """Embeddings, recurrent layers, pooled states, linear head. Subclasses name the cell.

    Each direction is a one-way network, and the second reads every text reversed within its own length: padding then
    stands behind the text in both, where it cannot change a state. This is exact, and twice as fast in training as
    packed sequences, for which torch has no fused CPU kernel.
    """

    cell: type[nn.LSTM] | type[nn.GRU]
    _input_embed_layer = "embeddings"

    def __init__(self, config: RNNConfig) -> None:
        super().__init__(config)
        directions = 2 if config.bidirectional else 1
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        widths = [config.embedding_size] + [config.hidden_size * directions] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(self.cell(width, config.hidden_size) for width in widths)
        self.backward_layers = nn.ModuleList(
            self.cell(width, config.hidden_size) for width in widths if config.bidirectional
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size * directions, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T), 0 marks padding, wherever it stands
        labels: Tensor | None = None,  # (B,)
        inputs_embeds: Tensor | None = None,  # (B, T, E), instead of input_ids
    ) -> SequenceClassifierOutput:
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        assert inputs is not None, "the model needs input_ids or inputs_embeds"
        order, real = reading_order(attention_mask, inputs)  # (T, B)
        if inputs_embeds is None:
            embedded = self.embeddings(inputs.t().gather(0, order))
        else:
            embedded = take(inputs.transpose(0, 1), order)
        pooled = self.encode(self.embedding_dropout(embedded), real)
        logits = self.classifier(self.dropout(pooled))  # (B, K)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def encode(self, states: Tensor, real: Tensor) -> Tensor:
        """Embedded texts (T, B, E), real tokens first -> pooled states of the top layer (B, D*H)."""
        backwards = reversal(real)
        for depth, layer in enumerate(self.layers):
            if depth:
                states = self.dropout(states)
            outputs = layer(states)[0]  # (T, B, H)
            if self.config.bidirectional:
                others = self.backward_layers[depth](take(states, backwards))[0]
                top = depth + 1 == len(self.layers)
                outputs = torch.cat([outputs, others if top else take(others, backwards)], dim=-1)
            states = outputs
        # the top layer's second direction stays reversed: its last state and its set of states are the same either way
        return pool(states, real, self.config.pooling)


class LSTMForSequenceClassification(RNNForSequenceClassification):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735)."""

    config_class = LSTMConfig
    cell = nn.LSTM


class GRUForSequenceClassification(RNNForSequenceClassification):
    """Gated recurrent units (Cho et al., 2014, https://arxiv.org/abs/1406.1078)."""

    config_class = GRUConfig
    cell = nn.GRU


def reading_order(attention_mask: Tensor | None, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The indices that put a text's real tokens first, in their order, and which places are then real: both (T, B)."""
    mask = torch.ones(inputs.shape[:2], device=inputs.device) if attention_mask is None else attention_mask
    padding = mask == 0  # (B, T)
    places = torch.arange(padding.shape[1], device=padding.device)[:, None]  # (T, 1)
    lengths = (~padding).sum(1).clamp(min=1)  # a text of nothing is read as one token of padding
    return padding.to(torch.uint8).argsort(dim=1, stable=True).t(), places < lengths


def reversal(real: Tensor) -> Tensor:
    """The indices (T, B) that reverse each text within its length and leave padding where it is. Its own inverse."""
    places = torch.arange(real.shape[0], device=real.device)[:, None]  # (T, 1)
    return torch.where(real, real.sum(0) - 1 - places, places)


def take(states: Tensor, index: Tensor) -> Tensor:
    """states (T, B, H) at the places index (U, B) -> (U, B, H). Rows are looked up, not each of their elements."""
    rows = index * states.shape[1] + torch.arange(states.shape[1], device=index.device)
    return states.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, -1)


def pool(states: Tensor, real: Tensor, pooling: str) -> Tensor:
    """States (T, B, H) of the real tokens (T, B) -> one vector each (B, H)."""
    lengths = real.sum(0)  # (B,)
    if pooling == "last":
        return take(states, lengths[None] - 1)[0]
    if pooling == "mean":
        return (states * real[..., None]).sum(0) / lengths[:, None]
    return states.masked_fill(~real[..., None], float("-inf")).amax(0)
