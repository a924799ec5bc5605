"""Bytes of an image file to its pixels: upright, one byte a value, grey or RGB. What cannot be decoded is Refused.

Size and format are read from the header, and an image that declares too many pixels is refused before any is decoded.
The formats are those that cameras, scanners and the web write; others, whose decoders have seen little abuse, are not
opened.
"""

from __future__ import annotations

import base64
import io
import struct
import warnings
from typing import Any

import numpy as np

from bigmodel.tasks.base import Refused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
NAMED = "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
MAX_PIXELS = 64_000_000
STRIP = 1_000_000  # pixels that are put on white at a time
ORIENTATION = 0x0112  # the EXIF tag; from 5 on the image lies on its side
IMAGE_WIDTH, IMAGE_HEIGHT = 0x0100, 0x0101  # tags of a TIFF
REASON = 160  # characters of what a decoder says


def header(data: bytes) -> Any:
    """The image of a file, not yet decoded: a `PIL.Image.Image` with its size. Raises Refused."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise Refused("the image is an empty file", "image")
    Image.init()  # else the formats of a first call are not all known
    warnings.filterwarnings("ignore", module=r"PIL\b")  # what a decoder mends is decoded, and our size limit is lower
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Refused(f"these bytes are no image that is read: {NAMED}", "image") from None
    except Image.DecompressionBombError:
        raise Refused(f"the image declares more than {MAX_PIXELS:,} pixels", "image") from None
    except Exception as error:  # a damaged file makes anything of a decoder
        raise _damaged(error) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Refused(f"the image declares {width:,} by {height:,} pixels; {MAX_PIXELS:,} are the most", "image")
    if not width * height:
        raise Refused(f"the image declares {width} by {height} pixels", "image")
    return image


def decode(data: bytes, enough: int | None = None) -> Any:
    """The image of a file as a `PIL.Image.Image` of mode L or RGB, turned as its EXIF data says. Raises Refused.

    enough  a side of this many pixels is as good as more: a large JPEG is then decoded at a half, a quarter or an
            eighth of its size, never below twice as many

    Of an animation the first frame; what is transparent stands on white; 16 bits a value are cut to the higher 8.
    """
    from PIL import ImageOps

    image = header(data)
    try:
        if enough:
            image.draft(None, (2 * enough, 2 * enough))
        image.load()
        plain = _plain(image)
        return ImageOps.exif_transpose(plain) if _turned(image) else plain
    except Refused:
        raise
    except Exception as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> Refused:
    said = " ".join(str(error).split())[:REASON] or type(error).__name__
    return Refused(f"the image is damaged: {said}", "image")


def _plain(image: Any) -> Any:
    from PIL import Image

    if image.mode == "F":
        raise Refused("the pixels of the image are floating-point numbers. Save it with 8 or 16 bits a value", "image")
    if image.mode.startswith("I"):
        high = np.asarray(image) >> 8
        plain = Image.fromarray(np.clip(high, 0, 255, out=high).astype(np.uint8))
        plain.info = image.info
        return plain
    mode = "L" if image.mode in GREY else "RGB"
    return _on_white(image, mode) if image.has_transparency_data else image.convert(mode)


def _on_white(image: Any, mode: str) -> Any:
    """A few lines at a time: the whole on its ground would be two images more in memory than are needed."""
    from PIL import Image

    plain = Image.new(mode, image.size)
    plain.info = image.info
    width, height = image.size
    lines = max(1, STRIP // width)
    for top in range(0, height, lines):
        strip = image.crop((0, top, width, min(top + lines, height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        white.alpha_composite(strip)
        plain.paste(white.convert(mode), (0, top))
    return plain


def _turned(image: Any) -> bool:
    """Whether the EXIF data says to turn it; damaged EXIF data says nothing."""
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except (OSError, ValueError, SyntaxError, KeyError, struct.error):
        return False


def upright_size(data: bytes) -> tuple[int, int]:
    """Height and width as the image is looked at. Raises Refused."""
    image = header(data)
    width, height = image.size
    if image.format == "TIFF":  # whose size some versions of Pillow tell as it is looked at
        width, height = image.tag_v2[IMAGE_WIDTH], image.tag_v2[IMAGE_HEIGHT]
    sideways = _turned(image) and image.getexif()[ORIENTATION] >= 5
    return (width, height) if sideways else (height, width)


def from_base64(text: str) -> bytes:
    """The bytes of base64, lines of it too, and as a browser writes it, `data:image/png;base64,...`. ValueError that
    says what is wrong."""
    if text.startswith("data:") and ";base64," in text[:100]:
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        kind = "an address" if ":" in text[:12] else "not base64"
        raise ValueError(f"is {kind}: give the bytes of an image file in base64") from None
