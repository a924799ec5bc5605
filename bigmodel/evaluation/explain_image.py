"""explain(predictor, rows): which pixels decided an answer, by integrated gradients
(Sundararajan, Taly & Yan, 2017, https://arxiv.org/abs/1703.01365), through captum.

What is explained is the log-odds of the label that was found, against all others together. Images of noise, with the
mean and deviation of the training images, are led in a straight line to the image as the model reads it, and a pixel's
weight is the gradient along the way times the way, summed over the channels and averaged over the ways: positive speaks
for the answer, negative against it. The weights sum to the log-odds of the image less the mean of those of the noise;
`completeness_error` says how far the sum is off. A start of one colour would not do: what a norm over an image's own
pixels makes of an image does not depend on its contrast, so that everything would be decided at the very start.

Everything is computed in fp32, one image at a time, whatever precision answers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from bigmodel.evaluation.attribution import log_odds, refined
from bigmodel.evaluation.layout import heading, put, wide
from bigmodel.tasks.base import Answer, Row, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel.predictor import Predictor

STARTS = 4  # images of noise, always the same
STEPS, MAX_STEPS = 16, 512  # points on each way: doubled until the sum is right
POINTS_AT_ONCE = 16
SHOWN_SIDE = 256  # pixels of the picture's longer side, at least
STRONGEST = 99.5  # percentile of the weights that has the full colour
FOR, AGAINST = (20, 70, 230), (230, 40, 20)  # blue, red


def explain(predictor: Predictor, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The answer to each row, and what decided it:

    sum_of_weights       of all pixels; height, width: how many pixels the model reads
    log_odds             of the answer, in nats; log_odds_of_noise: the mean of those of the noise
    completeness_error   distance of the sum from the difference of these two
    picture              a PNG: the image as the model reads it, and beside it the weights, blue for the answer, red
                         against it

    """
    questions: list[Row] = [{"image": row["image"]} for row in rows]
    answers = predictor.predict(questions)
    return [
        _explain(predictor, sample, answer) for sample, answer in zip(predictor.encode(questions), answers, strict=True)
    ]


def _explain(predictor: Predictor, sample: Sample, answer: Answer) -> dict[str, Any]:
    pixels = predictor.task.collate([sample], predictor.processor)["pixel_values"].to(predictor.device)
    weights, before, after = _integrate(predictor.model, pixels, list(answer["scores"]).index(answer["label"]))
    height, width = weights.shape
    total = float(weights.sum())
    return {
        **answer,
        "height": height,
        "width": width,
        "sum_of_weights": total,
        "log_odds": after,
        "log_odds_of_noise": before,
        "completeness_error": abs(total - (after - before)),
        "picture": draw(sample["pixels"].reshape(-1, height, width), weights),
    }


def _integrate(model: Any, pixels: Tensor, target: int) -> tuple[Any, float, float]:
    """Weights (H, W) float64 of the pixels (1, 3, H, W), and the log-odds of the target at both ends of the way."""
    import torch
    from captum.attr import IntegratedGradients

    def explained(points: Tensor) -> Tensor:
        """(P, 3, H, W) -> (P,)"""
        return log_odds(model(pixel_values=points).logits.float(), target)

    def attribute(steps: int) -> tuple[Any, float]:
        with torch.enable_grad():
            parts = gradients.attribute(ends, noise, n_steps=steps, internal_batch_size=POINTS_AT_ONCE)
        weights = parts.detach().double().mean(0).sum(0).cpu().numpy()
        return weights, abs(weights.sum() - (after - before))

    ends = pixels.expand(STARTS, -1, -1, -1)
    noise = torch.randn(ends.shape, generator=torch.Generator().manual_seed(0)).to(pixels.device)
    with torch.no_grad():
        before, after = explained(noise).mean().item(), explained(pixels).item()
    gradients = IntegratedGradients(explained)
    weights, _ = refined(attribute, after - before, STEPS, MAX_STEPS)
    return weights, before, after


def draw(pixels: Any, weights: Any) -> bytes:
    """PNG of the image, uint8 (1 or 3, H, W), and beside it of its weights (H, W) on white."""
    from PIL import Image

    strength = np.abs(weights) / max(float(np.percentile(np.abs(weights), STRONGEST)), 1e-12)
    colours = np.where(weights[..., None] > 0, FOR, AGAINST)
    marked = 255 + (colours - 255) * np.minimum(strength, 1.0)[..., None]  # (H, W, 3)
    image = np.broadcast_to(pixels, (3, *weights.shape)).transpose(1, 2, 0)
    height, width = weights.shape
    both = np.hstack([image, np.full((height, max(1, width // 16), 3), 255), marked]).round().astype(np.uint8)
    times = max(1, round(SHOWN_SIDE / max(height, width)))
    out = io.BytesIO()
    Image.fromarray(both.repeat(times, 0).repeat(times, 1)).save(out, "PNG")
    return out.getvalue()


def show(explanations: Sequence[Mapping[str, Any]]) -> None:
    """Print them: a terminal shows no picture."""
    for one in explanations:
        place = f"{one['file']}  " if "file" in one else ""
        put(
            heading(f"{place}{wide(one['label'], 60)} ({one['score']:.4f})"),
            Text(
                f"The weights of {one['width']} by {one['height']} pixels sum to {one['sum_of_weights']:.3f}: the "
                f"log-odds of the answer, {one['log_odds']:.3f}, less those of noise, "
                f"{one['log_odds_of_noise']:.3f} (off by {one['completeness_error']:.4f}). "
                "To see them, name a folder or a .png with --output."
            ),
        )
