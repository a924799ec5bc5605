"""How many tokens a model can read, where it learns a vector for each position."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

# these number their positions from pad_token_id + 1, MPNet from 2 whatever its pad_token_id
OFFSET = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def table_size(model_type: str, max_length: int, pad_token_id: int) -> int:
    """Rows of the table of positions, `max_position_embeddings`, for texts of at most `max_length` tokens."""
    return max_length + _offset(model_type, pad_token_id)


def max_tokens(config: PreTrainedConfig) -> int | None:
    """The longest text a checkpoint reads; None where its config knows no limit."""
    text: Any = config.get_text_config()
    rows = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return None if rows is None else rows - _offset(text.model_type, text.pad_token_id or 0)


def _offset(model_type: str, pad_token_id: int) -> int:
    return max(2, pad_token_id + 1) if model_type in OFFSET else 0
