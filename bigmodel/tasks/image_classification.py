"""image-classification: an image in, one label of a fixed set out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from bigmodel.errors import CheckpointError, ConfigError, first_line
from bigmodel.experiment import DataConfig, Experiment
from bigmodel.tasks import augment_images, labels, pictures, sampling, text_classification
from bigmodel.tasks.base import Answer, Examples, Goal, Refused, Row, Sample
from bigmodel.tasks.labels import clean_label, fit_labels, label_id

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

goal = Goal("accuracy", "max")
targets = ("label",)
judged_with = ()
unit = "patches of 16 by 16 pixels"

target, score, unfit = text_classification.target, text_classification.score, text_classification.unfit

PATCH = 16 * 16  # pixels that count as a token where batches are made
SURVEYED = 1000  # training images whose size and brightness are looked at
MAX_SIDE = 224  # of the size that follows from the training images
AT_ONCE, AT_ONCE_PIXELS = 32, 4_000_000  # images that are resized together, and what they have of pixels
CHECKED = 64  # a side that is enough to know that an image can be decoded


def columns(data: DataConfig) -> dict[str, str]:
    return {"image": data.image or "image", "label": data.label or "label"}


def clean(record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """`image`: the bytes of the file, which decode."""
    value = record[columns["image"]]
    if isinstance(value, Mapping):  # as Hugging Face's datasets store it: {"bytes": ..., "path": ...}
        value = value.get("bytes")
    if not isinstance(value, bytes):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
        raise Refused(f"the image is {found}, not the bytes of a file", columns["image"])
    try:
        pictures.decode(value, CHECKED)
    except Refused as refused:
        raise Refused(refused.reason, columns["image"]) from None
    row: Row = {"image": value}
    if "label" in columns:
        row["label"] = clean_label(record[columns["label"]], columns["label"])
    return row


def content(row: Row) -> str:
    return hashlib.sha256(row["image"]).hexdigest()


def fit(rows: Callable[[], Iterable[Row]], experiment: Experiment) -> tuple[Any, dict[str, Any]]:
    learnt = fit_labels((row["label"] for row in rows()), experiment.data.label or "label")
    if pretrained := experiment.model.get("pretrained"):
        processor = _pretrained_processor(pretrained)
    else:
        processor = _fit_processor(rows, experiment.data.images.size)
    height, width = _shape(processor)
    size = height if height == width else [height, width]
    return processor, learnt | {"image_size": size, "num_channels": 3}


def _some(rows: Callable[[], Iterable[Row]]) -> Callable[[], Iterator[bytes]]:
    """A random choice of images, the same each time. They are read whenever they are asked for, and not held."""
    numbers = set(sampling.sample((number for number, _ in enumerate(rows())), SURVEYED))
    return lambda: (row["image"] for number, row in enumerate(rows()) if number in numbers)


def _fit_processor(rows: Callable[[], Iterable[Row]], size: int | list[int] | None) -> Any:
    """transformers' own, in its Pillow form: resize to one size, mean and deviation of the training images."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    images = _some(rows)
    height, width = _median_size(images()) if size is None else (size, size) if isinstance(size, int) else size
    count, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)  # whole numbers, so that nothing is lost
    for image in images():
        decoded = pictures.decode(image, max(height, width)).convert("RGB").resize((width, height))
        pixels = np.asarray(decoded).reshape(-1, 3).astype(np.int64)  # (H * W, 3)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + np.square(pixels).sum(0)
    mean = total / count / 255
    std = np.maximum(np.sqrt(squares / count - np.square(total / count)) / 255, 0.01)
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=[round(float(value), 4) for value in mean],
        image_std=[round(float(value), 4) for value in std],
    )


def _median_size(images: Iterable[bytes]) -> tuple[int, int]:
    """Height and width of the images, made smaller where one is above MAX_SIDE."""
    sizes = [pictures.upright_size(image) for image in images]
    height, width = (float(np.median(side)) for side in zip(*sizes, strict=True))
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shaped_by(experiment: Experiment) -> dict[str, Any]:
    """The samples of all our models are the same; pretrained ones have their own way to make an image ready."""
    from importlib.metadata import version

    from bigmodel import models

    source = experiment.model.get("pretrained")
    if source is None:
        return {"pillow": version("pillow")}
    digest = models.pretrained.file_digest(source, "preprocessor_config.json")
    return {"pillow": version("pillow"), "pretrained": source, "settings": digest}


def _pretrained_processor(source: str) -> Any:
    from transformers import AutoImageProcessor

    from bigmodel import models

    try:
        processor = AutoImageProcessor.from_pretrained(
            models.pretrained.locate(source), backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as e:
        raise ConfigError(
            f"model.pretrained: '{source}' has no image processor (preprocessor_config.json): {first_line(e)}"
        ) from None
    if reason := _strange(processor):
        raise ConfigError(f"model.pretrained: '{source}' {reason}")
    return processor


def load_processor(path: Path, config: Any = None) -> Any:
    """CheckpointError where the model's own image processor does something that `encode` and `collate` do not
    reproduce."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    if config is not None and (reason := _strange(processor)):
        raise CheckpointError(f"{path}: its image processor {reason}")
    return processor


def _strange(processor: Any) -> str:
    """Why samples do not hold what the processor makes of an image; nothing where they do."""
    wide = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    images = [wide, wide.transpose(1, 0, 2)]
    shapes = {_prepared(processor, [image]).shape for image in images}
    if len(shapes) > 1 or len(shapes.pop()) != 4:
        return "takes images of any shape; one size for all is needed"
    own = processor(images, return_tensors="np")["pixel_values"]
    height, width = _shape(processor)
    samples = [{"pixels": pixels, "height": height, "width": width} for pixels in _prepared(processor, images)]
    if not np.allclose(own, collate(samples, processor)["pixel_values"].numpy(), rtol=0, atol=1e-3):
        return f"({type(processor).__name__}) scales pixels in a way of its own, which is not known here"
    return ""


def _prepared(processor: Any, images: Sequence[Any]) -> Any:
    """RGB images as the processor resizes and cuts them, (N, 3, H, W) uint8: values are scaled in `collate`. Many in a
    call: the call itself costs more than a small image."""
    plain = {"do_rescale": False, "do_normalize": False} | ({"include_top": False} if _divides_again(processor) else {})
    return np.asarray(processor(list(images), return_tensors="np", **plain)["pixel_values"], np.uint8)


def _divides_again(processor: Any) -> bool:
    """Whether pixels are divided by their deviation once more, as EfficientNet has it for its classifier."""
    return bool(getattr(processor, "include_top", False))


def _shape(processor: Any) -> tuple[int, int]:
    """Height and width of what it makes of any image."""
    *_, height, width = _prepared(processor, [np.zeros((64, 64, 3), np.uint8)]).shape
    return height, width


def encode(rows: Sequence[Row], processor: Any, learnt: Mapping[str, Any]) -> list[Sample]:
    """`pixels` uint8 (H * W,) of a grey image or (3 * H * W,), its `height`; `labels` where the rows have one."""
    enough = max(_shape(processor))
    samples: list[Sample] = []
    held: list[tuple[Row, Any]] = []
    for number, row in enumerate(rows, 1):
        held.append((row, pictures.decode(row["image"], enough)))
        if (
            number == len(rows)
            or len(held) == AT_ONCE
            or sum(math.prod(image.size) for _, image in held) > AT_ONCE_PIXELS
        ):
            samples += _encoded(held, processor, learnt)
            held = []
    return samples


def _encoded(decoded: Sequence[tuple[Row, Any]], processor: Any, learnt: Mapping[str, Any]) -> Iterator[Sample]:
    every = _prepared(processor, [image.convert("RGB") for _, image in decoded])  # (N, 3, H, W)
    for (row, image), pixels in zip(decoded, every, strict=True):
        kept = pixels[:1] if image.mode == "L" else pixels
        sample: Sample = {"pixels": kept.flatten(), "height": pixels.shape[1], "width": pixels.shape[2]}
        if "label" in row:
            sample["labels"] = label_id(row["label"], learnt["label2id"])
        yield sample


def length(sample: Sample) -> int:
    """Patches of 16 by 16 pixels."""
    return max(1, int(sample["height"]) * int(sample["width"]) // PATCH)


def examples(samples: Examples, experiment: Experiment) -> Examples:
    return samples


def augment(
    sample: Sample, rng: np.random.Generator, experiment: Experiment, processor: Any, samples: Examples
) -> Sample:
    return augment_images.augment(sample, rng, experiment.data.augment, samples)


def collate(samples: Sequence[Sample], processor: Any) -> dict[str, Tensor]:
    """`pixel_values` float32 (B, 3, H, W), scaled as the processor says; `labels` int64 (B,); of mixed images also
    `others` int64 (B,), the second label, and `shares` float32 (B,), how much of the image is the first one's."""
    import torch

    height, width = samples[0]["height"], samples[0]["width"]
    every = [sample["pixels"].reshape(-1, height, width) for sample in samples]
    if len({len(pixels) for pixels in every}) > 1:
        every = [np.broadcast_to(pixels, (3, height, width)) for pixels in every]
    factor, shift = _scaling(processor)
    pixels = torch.from_numpy(np.stack(every)).float()  # (B, 1 or 3, H, W)
    batch = {"pixel_values": torch.addcmul(shift, pixels, factor)}
    for name in ("labels", "others"):
        if name in samples[0]:
            batch[name] = torch.tensor([sample[name] for sample in samples])
    if "shares" in samples[0]:
        batch["shares"] = torch.tensor([sample["shares"] for sample in samples], dtype=torch.float32)
    return batch


def _scaling(processor: Any) -> tuple[Tensor, Tensor]:
    """What the pixels of each channel are multiplied by, and what is added then; (3, 1, 1) each."""
    scale, offset, mean, std, again = 1.0, 0.0, (0.0,) * 3, (1.0,) * 3, (1.0,) * 3
    if processor.do_rescale:
        scale, offset = processor.rescale_factor, float(getattr(processor, "rescale_offset", False))
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if _divides_again(processor):
        again = tuple(processor.image_std)
    return _affine(scale, offset, mean, std, again)


@cache
def _affine(scale: float, offset: float, *of_channels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """((scale x - offset) - mean) / std / std_again as a product and a sum."""
    import torch

    mean, std, again = (torch.tensor(values) for values in of_channels)
    return (scale / std / again).view(3, 1, 1), (-(mean + offset) / std / again).view(3, 1, 1)


def num_targets(batch: Mapping[str, Tensor]) -> int:
    return len(batch["pixel_values"])


def padded(batch: Mapping[str, Tensor]) -> int:
    images, _, height, width = batch["pixel_values"].shape
    return images * max(1, height * width // PATCH)


def loss(model: Any, batch: Mapping[str, Tensor], experiment: Experiment) -> Tensor:
    from torch.nn.functional import cross_entropy

    logits = model(pixel_values=batch["pixel_values"]).logits.float()  # (B, K)
    smoothing = experiment.train.label_smoothing
    if "others" not in batch:
        return cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=smoothing)
    first, second = (
        cross_entropy(logits, batch[name], reduction="none", label_smoothing=smoothing) for name in ("labels", "others")
    )
    return (batch["shares"] * first + (1 - batch["shares"]) * second).sum()


def predict(model: Any, batch: Mapping[str, Tensor], processor: Any) -> list[Answer]:
    return labels.answers(model(pixel_values=batch["pixel_values"]).logits, model.config.id2label)


judge = predict


def request(processor: Any) -> type[BaseModel]:
    from pydantic import AfterValidator, ConfigDict, Field, create_model

    says = Field(
        description="The bytes of an image file in base64.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*"},
    )
    image = Annotated[str, AfterValidator(pictures.from_base64), says]
    return create_model("Image", __config__=ConfigDict(extra="forbid", strict=True), image=(image, ...))


def asked(fields: Mapping[str, Any], processor: Any) -> Row:
    pictures.header(fields["image"])
    return dict(fields)


def cost(row: Row, processor: Any) -> int:
    """What the model reads of any image."""
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    sides = [side for name in ("height", "width", "shortest_edge") if (side := getattr(size, name, None))]
    return max(1, int(sides[0] * sides[-1]) // PATCH)


def answer(processor: Any) -> type[BaseModel]:
    return labels.answer_model()
