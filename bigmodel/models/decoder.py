"""A self-attention decoder from scratch: Llama's architecture as transformers has it, at a size for a laptop.

Touvron et al., 2023, https://arxiv.org/abs/2302.13971. The fields are those of `transformers.LlamaConfig`; only the
defaults differ. For Llama's own defaults say `type: llama`.
"""

from collections.abc import Mapping
from typing import Any


def decoder_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Four layers of width 128; heads of 32 or more; a gated feed-forward layer of 8/3 of the width, as in Llama."""
    hidden_size = fields.get("hidden_size", 128)
    num_heads = next(n for n in range(max(1, hidden_size // 32), 0, -1) if hidden_size % (2 * n) == 0 or n == 1)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 4,
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.get("num_attention_heads", num_heads),
        "intermediate_size": -(-8 * hidden_size // 3 // 8) * 8,
        "tie_word_embeddings": False,
    }
