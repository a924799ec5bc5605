"""A small residual network for images, without batch statistics.

Shapes: B images, C channels, H by W pixels, F filters of a stage, K labels.
"""

from dataclasses import field

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.modeling_utils import PreTrainedModel

GRID = 14  # places of the stem's output along the shorter side, about
MAX_STRIDE = 8
GROUP = 8  # filters that are normed together
LEAST = 8  # filters of a stage that another follows


@strict
class CNNConfig(PreTrainedConfig):
    """Residual network for images.

    hidden_sizes       filters of each stage, at least 8 before the last; each but the first halves height and width
    depths             residual blocks of each stage
    stem_stride        pixels between the places that the first convolution looks at; 0 follows from the size of the
                       images, so that about 14 stand along the shorter side
    dropout            probability that a feature is dropped before the classifier
    initializer_range  deviation of the weights that `init: normal` draws
    """

    model_type = "cnn"

    image_size: list[int] | int = field(default_factory=lambda: [28, 28])
    num_channels: int = 3
    hidden_sizes: list[int] = field(default_factory=lambda: [32, 64, 128])
    depths: list[int] = field(default_factory=lambda: [1, 1, 1])
    stem_stride: int = 0
    dropout: float | int = 0.1
    initializer_range: float = 0.02

    def validate_stages(self) -> None:
        if not self.hidden_sizes or len(self.hidden_sizes) != len(self.depths):
            raise ValueError("hidden_sizes and depths name the same stages: give both as many numbers, at least one")
        # oneDNN's gradient for a convolution of one place, stride 2, of 2 to 7 channels in channels_last is wrong
        if any(size < LEAST for size in self.hidden_sizes[:-1]):
            raise ValueError(f"hidden_sizes: every stage before the last needs at least {LEAST} filters")


class CNNForImageClassification(PreTrainedModel):
    """Stem, residual blocks (He et al., 2016, https://arxiv.org/abs/1512.03385), mean over all places, linear head.

    Norms are over groups of filters of one image (Wu & He, 2018, https://arxiv.org/abs/1803.08494): neither an answer
    nor a gradient depends on what else is in the batch, on one worker as on many. The last norm of a block starts at 0,
    so that at first a block hands on what it was given (Goyal et al., 2017, https://arxiv.org/abs/1706.02677).
    """

    config_class = CNNConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        first = config.hidden_sizes[0]
        stride = config.stem_stride or fitting_stride(config.image_size)
        self.stem = nn.Conv2d(config.num_channels, first, 2 * stride + 1, stride, padding=stride, bias=False)
        self.stem_norm = norm(first)
        blocks: list[nn.Module] = []
        width = first
        for stage, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            for number in range(depth):
                blocks.append(Block(width, size, stride=2 if stage and not number else 1))
                width = size
        self.blocks = nn.ModuleList(blocks)
        self.starts_at_zero = {f"blocks.{i}.norm2" for i in range(len(blocks))}
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor,  # (B, C, H, W)
        labels: Tensor | None = None,  # (B,)
    ) -> ImageClassifierOutputWithNoAttention:
        x = pixel_values.contiguous(memory_format=torch.channels_last)  # half the time of the other order on a CPU
        x = functional.relu(self.stem_norm(self.stem(x)))  # (B, F, H / stride, W / stride)
        for block in self.blocks:
            x = block(x)
        logits = self.classifier(self.dropout(x.mean((2, 3))))  # (B, K)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class Block(nn.Module):
    """Two convolutions around which the input goes straight, or through one that looks at single places."""

    def __init__(self, width: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, size, 3, stride, padding=1, bias=False)
        self.norm1 = norm(size)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.norm2 = norm(size)
        straight = width == size and stride == 1
        self.shortcut = nn.Identity() if straight else nn.Conv2d(width, size, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F', H / stride, W / stride)."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def norm(size: int) -> nn.GroupNorm:
    """Over groups of 8 filters, or of as many as divide their number."""
    group = next(n for n in range(min(GROUP, size), 0, -1) if size % n == 0)
    return nn.GroupNorm(size // group, size)


def fitting_stride(image_size: list[int] | int) -> int:
    """The power of two, at most 8, that leaves about 14 places along the shorter side."""
    shorter = image_size if isinstance(image_size, int) else min(image_size)
    return min(MAX_STRIDE, 1 << max(shorter // GRID, 1).bit_length() - 1)
