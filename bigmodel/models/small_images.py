"""ResNet and ViT from scratch: transformers' own architectures, at a size for small images and a laptop.

He et al., 2016, https://arxiv.org/abs/1512.03385; Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929. The
fields are those of `transformers.ResNetConfig` and `ViTConfig`; only the defaults differ.
"""

from collections.abc import Mapping
from typing import Any

from bigmodel.models.fields import ModelError

PATCHES = 7  # of a ViT along the shorter side, at least


def resnet_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Stages of two blocks: three, or as many as an image of this size bears; the first keeps what the stem leaves, a
    quarter of height and width. ModelError where more are asked for."""
    most, asked = most_stages(fields), fields.get("hidden_sizes", fields.get("depths"))
    stages = len(asked) if isinstance(asked, list) else max(1, min(3, most))
    if stages > most:
        raise ModelError(
            f"model.type resnet: {stages} stages leave a single place of an image of {fields['image_size']} pixels, "
            "and batch norm needs two where an image stands alone. "
            + (f"Name at most {most} hidden_sizes and depths" if most > 0 else "Name type cnn")
        )
    sizes = fields.get("hidden_sizes", [32, 64, 128])
    return {
        "layer_type": "basic",
        "embedding_size": sizes[0] if isinstance(sizes, list) and sizes else 32,
        "hidden_sizes": [32, 64, 128][:stages],
        "depths": [2, 2, 2][:stages],
    }


def most_stages(fields: Mapping[str, Any]) -> int:
    """Of a ResNet, so that more than one place is left of an image."""
    size = fields.get("image_size") or 1 << 30
    longer = size if isinstance(size, int) else max(size)
    return (longer - 1).bit_length() - 2 - bool(fields.get("downsample_in_first_stage"))


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
