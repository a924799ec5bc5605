"""Recurrent language models: LSTM and GRU in one direction, which remember a text in one state.

Shapes: B texts, T tokens, E embedding, H state, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

State = tuple[Tensor, ...]  # h, and c of an LSTM: (1, B, H)


class RNNLMConfig(PreTrainedConfig):
    """The fields that both share.

    embedding_size     width of a token's vector
    hidden_size        width of the state
    num_hidden_layers  layers, each reading the states of the one below
    dropout            probability that a component is dropped: of a token's vector, between layers, before the output
    initializer_range  deviation of the weights that `init: normal` draws
    """

    vocab_size: int = 30_000
    embedding_size: int = 128
    hidden_size: int = 512
    num_hidden_layers: int = 1
    dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    initializer_range: float = 0.02


@strict
class LSTMLMConfig(RNNLMConfig):
    """LSTM language model."""

    model_type = "lstm_lm"


@strict
class GRULMConfig(RNNLMConfig):
    """GRU language model."""

    model_type = "gru_lm"


class Remembered:
    """The states of B texts, a pair or one a layer: what `generate` hands from token to token."""

    def __init__(self, states: Sequence[State]) -> None:
        self.states = list(states)

    @classmethod
    def joined(cls, each: Sequence["Remembered"]) -> "Remembered":
        """Of several texts together."""
        layers = zip(*(one.states for one in each), strict=True)
        return cls([tuple(torch.cat(part, dim=1) for part in zip(*layer, strict=True)) for layer in layers])

    def parted(self) -> list["Remembered"]:
        """Of each text alone."""
        count = self.states[0][0].shape[1]
        return [Remembered([tuple(t[:, i : i + 1] for t in state) for state in self.states]) for i in range(count)]

    def reorder_cache(self, beams: Tensor) -> None:
        """Of other texts, by number, as beam search asks for."""
        self.states = [tuple(t.index_select(1, beams) for t in state) for state in self.states]


@dataclass
class RNNLMOutput(ModelOutput):
    """`cache` is the state after the last token."""

    loss: Tensor | None = None
    logits: Tensor | None = None  # (B, T, V)
    cache: Any = None


class RNNForCausalLM(PreTrainedModel, GenerationMixin):
    """Embeddings, recurrent layers, linear output. Subclasses name the cell."""

    cell: type[nn.LSTM] | type[nn.GRU]
    _input_embed_layer = "embeddings"
    _is_stateful = True
    main_input_name = "input_ids"

    def __init__(self, config: RNNLMConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(self.cell(width, config.hidden_size, batch_first=True) for width in widths)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward pass makes the state

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T) or longer, 0 marks padding, which no state remembers
        labels: Tensor | None = None,  # (B, T), -100 where there is no target; those of the next token stand one later
        inputs_embeds: Tensor | None = None,  # (B, T, E), instead of input_ids
        cache: Remembered | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> RNNLMOutput:
        assert return_dict, "it answers with named outputs alone"
        if inputs_embeds is None:
            inputs_embeds = self.embeddings(input_ids)
        states = self.dropout(inputs_embeds)
        mask = None if attention_mask is None else attention_mask[:, -states.shape[1] :]
        lengths = None if mask is None or bool(mask.all()) else mask.sum(1)
        if lengths is not None:
            assert mask is not None
            order = (mask == 0).to(torch.uint8).argsort(dim=1, stable=True)  # real tokens first
            states = states.gather(1, order[..., None].expand_as(states))
        remembered = []
        for depth, layer in enumerate(self.layers):
            before = None if cache is None else cache.states[depth]
            states, after = run(layer, states, before, lengths)
            remembered.append(after)
            states = self.dropout(states)
        if lengths is not None:
            states = states.gather(1, order.argsort(dim=1)[..., None].expand_as(states))
        logits = self.lm_head(states[:, -logits_to_keep:] if logits_to_keep else states)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return RNNLMOutput(loss=loss, logits=logits, cache=Remembered(remembered) if use_cache else None)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Remembered | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool = True,
        **_: Any,
    ) -> dict[str, Any]:
        """All of the texts first, then the last token and the state before it."""
        if cache is not None:
            return {"input_ids": input_ids[:, -1:], "cache": cache, "use_cache": use_cache}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}


def run(layer: Any, inputs: Tensor, before: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
    """Inputs (B, T, E), real ones first where there are `lengths` -> states (B, T, H), the last one of each text."""
    state: Any = before[0] if before is not None and len(before) == 1 else before
    if lengths is None:
        outputs, after = layer(inputs, state)
    else:
        packed = pack_padded_sequence(inputs, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        packed_outputs, after = layer(packed, state)
        outputs, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=inputs.shape[1])
    return outputs, after if isinstance(after, tuple) else (after,)


class LSTMForCausalLM(RNNForCausalLM):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735)."""

    config_class = LSTMLMConfig
    cell = nn.LSTM


class GRUForCausalLM(RNNForCausalLM):
    """Gated recurrent units (Cho et al., 2014, https://arxiv.org/abs/1406.1078)."""

    config_class = GRULMConfig
    cell = nn.GRU
