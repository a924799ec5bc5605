"""ResNet and ViT from scratch: transformers' own architectures, at a size for small images and a laptop.

He et al., 2016, https://arxiv.org/abs/1512.03385; Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929. The
fields are those of `transformers.ResNetConfig` and `ViTConfig`; only the defaults differ.
"""

from collections.abc import Mapping
from typing import Any

PATCHES = 7  # of a ViT along the shorter side, at least


def resnet_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Three stages of two blocks; the first keeps what the stem leaves, a quarter of height and width."""
    sizes = fields.get("hidden_sizes", [32, 64, 128])
    return {
        "layer_type": "basic",
        "embedding_size": sizes[0] if isinstance(sizes, list) and sizes else 32,
        "hidden_sizes": [32, 64, 128],
        "depths": [2, 2, 2],
    }


def vit_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Four layers of width 128; patches a power of two wide, at least seven along the shorter side of the image."""
    size = fields.get("image_size") or 28
    shorter = size if isinstance(size, int) else min(size)
    hidden_size = fields.get("hidden_size", 128)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 4,
        "num_attention_heads": next(n for n in range(max(1, hidden_size // 32), 0, -1) if hidden_size % n == 0),
        "intermediate_size": 4 * hidden_size,
        "patch_size": 1 << max(shorter // PATCHES, 1).bit_length() - 1,
        "hidden_dropout_prob": 0.1,
    }
