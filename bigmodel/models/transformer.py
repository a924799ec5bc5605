"""A self-attention encoder from scratch: BERT's architecture as transformers has it, at a size for a laptop.

Devlin et al., 2019, https://arxiv.org/abs/1810.04805. The fields are those of `transformers.BertConfig`; only the
defaults differ. For BERT's own defaults say `type: bert`.
"""

from collections.abc import Mapping
from typing import Any

from transformers.models.bert.configuration_bert import BertConfig

EncoderConfig = BertConfig


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
