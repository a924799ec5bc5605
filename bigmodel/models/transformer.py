"""Self-attention from scratch: native architectures of transformers, at a size for a laptop.

encoder     BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805)
translator  Marian (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Junczys-Dowmunt et al., 2018,
            https://arxiv.org/abs/1804.00344): encoder and decoder, sinusoidal positions, norms after each layer

The fields are those of `transformers.BertConfig` and `MarianConfig`; only the defaults differ. For their own say
`type: bert` or `type: marian`.
"""

from collections.abc import Mapping
from typing import Any


def encoder_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Two layers of width 128; heads of 64 or more and a feed-forward layer of four times the width, as in BERT."""
    hidden_size = fields.get("hidden_size", 128)
    num_heads = next(n for n in range(max(1, hidden_size // 64), 0, -1) if hidden_size % n == 0)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": num_heads,
        "intermediate_size": 4 * hidden_size,
    }


def translator_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Three layers of width 256 on each side, with heads of 64 or more; vectors that enter at the size of the positions
    they are added to, as their table also gives the logits."""
    hidden_size = fields.get("hidden_size", fields.get("d_model", 256))
    num_heads = next(n for n in range(max(1, hidden_size // 64), 0, -1) if hidden_size % n == 0)
    num_heads = fields.get("num_attention_heads", fields.get("encoder_attention_heads", num_heads))
    num_layers = fields.get("num_hidden_layers", fields.get("encoder_layers", 3))
    return {
        "d_model": hidden_size,
        "encoder_layers": num_layers,
        "decoder_layers": num_layers,
        "encoder_attention_heads": num_heads,
        "decoder_attention_heads": num_heads,
        "activation_function": "relu",
        "encoder_ffn_dim": 4 * hidden_size,
        "decoder_ffn_dim": 4 * hidden_size,
        "attention_dropout": 0.1,
        "scale_embedding": True,
    }
