"""A recurrent encoder-decoder with attention, for `AutoModelForSeq2SeqLM` and its `generate`.

Luong et al., 2015, https://arxiv.org/abs/1508.04025: the decoder's states look at the encoder's (general score), and
both together give the next word. Without input feeding, so that training runs through a whole target at once.

Shapes: B texts, T source tokens, U target tokens, E embedding, H state of one direction, V words.
"""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import PreTrainedModel


@strict
class RNNSeq2SeqConfig(PreTrainedConfig):
    """Recurrent encoder-decoder with attention.

    cell               lstm or gru
    embedding_size     width of a token's vector
    hidden_size        width of a decoder's state, and of an encoder's in one direction
    num_hidden_layers  layers of each side, each reading the states of the one below; the encoder's read both ways
    dropout            probability that a component of a token's vector, or of a state between layers, is dropped
    tie_word_embeddings  whether the table of the decoder's words also gives the logits
    use_cache          whether `generate` keeps the decoder's states
    initializer_range  deviation of the weights that `init: normal` draws
    """

    model_type = "rnn_seq2seq"

    vocab_size: int = 8_000
    decoder_vocab_size: int | None = None
    share_encoder_decoder_embeddings: bool = True
    cell: Literal["lstm", "gru"] = "gru"
    embedding_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 1
    dropout: float | int = 0.3
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    decoder_start_token_id: int | None = 2
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    initializer_range: float = 0.02


class RNNEncoder(nn.Module):
    """Reads a text both ways; the second direction as in `rnn.py`, reversed within the text's own length."""

    main_input_name = "input_ids"

    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__()
        cell = CELLS[config.cell]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        widths = [config.embedding_size] + [2 * config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(cell(width, config.hidden_size) for width in widths)
        self.backward_layers = nn.ModuleList(cell(width, config.hidden_size) for width in widths)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T), 0 marks padding, on the right
        return_dict: bool | None = None,  # always
        output_attentions: bool | None = None,  # there are none, and no hidden states but the last
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None].expand(-1, len(input_ids))  # (T, B)
        lengths = torch.full_like(places[0], len(places)) if attention_mask is None else attention_mask.sum(1)
        backwards = torch.where(places < lengths, lengths - 1 - places, places)  # its own inverse
        states = self.embed_tokens(input_ids.t())  # (T, B, E)
        for layer, other in zip(self.layers, self.backward_layers, strict=True):
            states = self.dropout(states)
            there, back = layer(states)[0], take(other(take(states, backwards))[0], backwards)
            states = torch.cat([there, back], dim=-1)  # (T, B, 2H)
        return BaseModelOutput(last_hidden_state=states.transpose(0, 1))


class RNNForSeq2SeqLM(PreTrainedModel, GenerationMixin):
    """Encoder, decoder that begins with a map of the encoder's mean state, attention, vectors of words as output.

    What `generate` keeps of the past are the decoder's states: they lie in its cache as keys, the cells of an LSTM as
    values, and only the last of them is read.
    """

    config_class = RNNSeq2SeqConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__(config)
        cell, size, embedding = CELLS[config.cell], config.hidden_size, config.embedding_size
        words = config.vocab_size
        if not config.share_encoder_decoder_embeddings:
            words = config.decoder_vocab_size or words
        self.encoder = RNNEncoder(config)
        self.embed_tokens = nn.Embedding(words, embedding, config.pad_token_id)
        self.begin = nn.Linear(2 * size, size * config.num_hidden_layers)
        widths = [embedding] + [size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(cell(width, size) for width in widths)
        self.score = nn.Linear(2 * size, size, bias=False)
        self.combine = nn.Linear(3 * size, embedding)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(embedding, words)
        self._tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
        if config.share_encoder_decoder_embeddings:
            self._tied_weights_keys |= {"encoder.embed_tokens.weight": "embed_tokens.weight"}
        self.post_init()  # type: ignore[no-untyped-call]

    def get_encoder(self, modality: str | None = None) -> RNNEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        head: nn.Linear = self.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T), 0 marks padding, on the right
        decoder_input_ids: Tensor | None = None,  # (B, U), only the new ones beside a cache
        encoder_outputs: BaseModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,  # (B, U), -100 is none
        use_cache: bool | None = None,
        return_dict: bool | None = None,  # always
        output_attentions: bool | None = None,  # not given
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        if encoder_outputs is None:
            assert input_ids is not None, "the model needs input_ids or encoder_outputs"
            encoder_outputs = self.encoder(input_ids, attention_mask)
        source = encoder_outputs.last_hidden_state
        assert source is not None, "an encoder gives its last states"
        if decoder_input_ids is None:
            assert labels is not None, "the model needs decoder_input_ids or labels"
            decoder_input_ids = self._shifted(labels)
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        real = torch.ones(source.shape[:2], device=source.device) if attention_mask is None else attention_mask
        states = self._decode(decoder_input_ids, source, real, cache)  # (B, U, H)
        scores = self.score(source) @ states.transpose(1, 2)  # (B, T, U)
        looked = scores.masked_fill(real[..., None] == 0, float("-inf")).softmax(1)
        context = looked.transpose(1, 2).to(source.dtype) @ source  # (B, U, 2H)
        logits = self.lm_head(self.dropout(torch.tanh(self.combine(torch.cat([context, states], dim=-1)))))
        loss = None if labels is None else functional.cross_entropy(logits.float().transpose(1, 2), labels)
        return Seq2SeqLMOutput(
            loss=loss, logits=logits, cache=cache, encoder_last_hidden_state=encoder_outputs.last_hidden_state
        )

    def _decode(self, ids: Tensor, source: Tensor, real: Tensor, cache: EncoderDecoderCache | None) -> Tensor:
        """Ids (B, U) -> states of the top layer (B, U, H), from the last ones in the cache if it has any."""
        own: Any = cache.self_attention_cache if cache is not None else None
        begun = own is not None and own.get_seq_length() > 0
        mean = (source * real[..., None]).sum(1) / real.sum(1, keepdim=True)  # (B, 2H)
        first = torch.tanh(self.begin(mean)).unflatten(1, (len(self.layers), -1))  # (B, layers, H)
        states: Tensor = self.embed_tokens(ids).transpose(0, 1)  # (U, B, E)
        for depth, layer in enumerate(self.layers):
            last, memory = first[:, depth], torch.zeros_like(first[:, depth])
            if begun:
                past = own.layers[depth]
                last, memory = past.keys[:, 0, -1], past.values[:, 0, -1]
            last, memory = last[None].to(states.dtype).contiguous(), memory[None].to(states.dtype).contiguous()
            states, after = layer(self.dropout(states), (last, memory) if self.config.cell == "lstm" else last)
            if own is not None:
                kept = states.transpose(0, 1)[:, None]  # (B, 1, U, H)
                cells = after[1][0][:, None, None] if self.config.cell == "lstm" else kept
                own.update(kept, cells.expand_as(kept), depth)
        return states.transpose(0, 1)

    def _shifted(self, labels: Tensor) -> Tensor:
        """Labels (B, U) one place to the right, behind the token that begins."""
        begin = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        return torch.cat([begin, labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id)], dim=1)


def take(states: Tensor, index: Tensor) -> Tensor:
    """states (T, B, H) at the places index (U, B) -> (U, B, H). Rows are looked up, not each of their elements."""
    rows = index * states.shape[1] + torch.arange(states.shape[1], device=index.device)
    return states.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, -1)


CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
