"""Random changes to training images. Each is a function of the numbers it is given, on pixels uint8 (C, H, W)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bigmodel.experiment import AugmentConfig
from bigmodel.tasks.base import Examples, Sample

Pixels = NDArray[np.uint8]
Rng = np.random.Generator


def augment(sample: Sample, rng: Rng, rates: AugmentConfig, samples: Examples) -> Sample:
    """A sample with changed pixels; where images are mixed, with `others` and `shares` too."""
    pixels = change(_pixels(sample), rng, rates)
    changed = dict(sample)
    if rates.mixup or rates.cutmix:
        (other,) = samples.take([int(rng.integers(len(samples)))])
        share, which = 1.0, rng.random()
        if which < rates.mixup:
            pixels, share = mixup(*_alike(pixels, change(_pixels(other), rng, rates)), rng)
        elif which < rates.mixup + rates.cutmix:
            pixels, share = cutmix(*_alike(pixels, change(_pixels(other), rng, rates)), rng)
        changed |= {"others": other["labels"], "shares": share}
    return changed | {"pixels": np.ascontiguousarray(pixels).reshape(-1)}


def change(pixels: Pixels, rng: Rng, rates: AugmentConfig) -> Pixels:
    """What happens to one image alone, in this order."""
    if rates.rotation:
        pixels = rotate(pixels, rng.uniform(-rates.rotation, rates.rotation))
    if rates.crop:
        pixels = crop(pixels, rng, rates.crop)
    if rates.flip and rng.random() < rates.flip:
        pixels = pixels[:, :, ::-1]
    if rates.colour:
        pixels = colour(pixels, rng, rates.colour)
    if rates.erasing and rng.random() < rates.erasing:
        pixels = erase(pixels, rng)
    return pixels


def _pixels(sample: Sample) -> Pixels:
    pixels: Pixels = sample["pixels"].reshape(-1, sample["height"], sample["width"])
    return pixels


def _alike(one: Pixels, other: Pixels) -> tuple[Pixels, Pixels]:
    """Both grey, or both of three channels."""
    channels = max(len(one), len(other))
    return tuple(np.broadcast_to(image, (channels, *image.shape[1:])) for image in (one, other))  # type: ignore[return-value]


def crop(pixels: Pixels, rng: Rng, most: float) -> Pixels:
    """Shift by up to this part of height and width, the edge repeated where nothing is (He et al., 2016)."""
    _, height, width = pixels.shape
    down, right = round(height * most), round(width * most)
    top, left = rng.integers(0, 2 * down + 1), rng.integers(0, 2 * right + 1)
    return pixels.take(shifted(height, int(top) - down), 1).take(shifted(width, int(left) - right), 2)


@lru_cache(1024)
def shifted(side: int, by: int) -> NDArray[np.int64]:
    """Which of the pixels along a side comes to which place; the edge's own beyond it."""
    return np.clip(np.arange(side) + by, 0, side - 1)


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """About the middle; what comes in at the corners has the colour of the image's own corner.

    The bits of Pillow's Image.rotate, in two thirds of the time.
    """
    from PIL import Image

    _, height, width = pixels.shape
    x, y = width / 2, height / 2
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    from_where = (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)  # in Pillow's order
    rotated = np.empty_like(pixels, order="C")
    for to, channel in zip(rotated, np.ascontiguousarray(pixels), strict=True):
        image = Image.frombuffer("L", (width, height), channel, "raw", "L", 0, 1)
        image = image.transform(
            image.size, Image.Transform.AFFINE, from_where, Image.Resampling.BILINEAR, fillcolor=int(channel[0, 0])
        )
        to[:] = np.frombuffer(image.tobytes(), np.uint8).reshape(height, width)
    return rotated


def colour(pixels: Pixels, rng: Rng, most: float) -> Pixels:
    """Brightness, contrast and the balance of the channels, each by a factor within 1 - most and 1 + most."""
    values = pixels.astype(np.float32)
    brightness, contrast = rng.uniform(1 - most, 1 + most, 2)
    middle = values.mean()
    values = ((values - middle) * contrast + middle) * brightness
    if len(pixels) == 3:
        values *= rng.uniform(1 - most / 2, 1 + most / 2, (3, 1, 1))
    changed: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return changed


def erase(pixels: Pixels, rng: Rng) -> Pixels:
    """A rectangle of noise over 2 to 20 % of the image (Zhong et al., 2020, https://arxiv.org/abs/1708.04896)."""
    channels, height, width = pixels.shape
    top, left, tall, wide = _rectangle(height, width, rng.uniform(0.02, 0.2), rng)
    erased = pixels.copy()
    erased[:, top : top + tall, left : left + wide] = rng.integers(0, 256, (channels, tall, wide), dtype=np.uint8)
    return erased


def mixup(one: Pixels, other: Pixels, rng: Rng) -> tuple[Pixels, float]:
    """Both images through each other (Zhang et al., 2018, https://arxiv.org/abs/1710.09412), alpha 0.2. -> the part of
    the first"""
    share = float(rng.beta(0.2, 0.2))
    return np.rint(share * one + (1 - share) * other).astype(np.uint8), share


def cutmix(one: Pixels, other: Pixels, rng: Rng) -> tuple[Pixels, float]:
    """A rectangle of the other (Yun et al., 2019, https://arxiv.org/abs/1905.04899), alpha 1. -> the part of
    the first"""
    _, height, width = one.shape
    top, left, tall, wide = _rectangle(height, width, float(rng.random()), rng)
    mixed = one.copy()
    mixed[:, top : top + tall, left : left + wide] = other[:, top : top + tall, left : left + wide]
    return mixed, 1 - tall * wide / (height * width)


def _rectangle(height: int, width: int, part: float, rng: Rng) -> tuple[int, int, int, int]:
    """Top, left, height and width of a rectangle somewhere inside, of this part of the area."""
    tall, wide = (min(side, max(1, round(side * part**0.5))) for side in (height, width))
    return int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1)), tall, wide
