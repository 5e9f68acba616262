"""What an image file is, the same for every reader: its formats, its depth and its longest side."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from PIL import Image, UnidentifiedImageError

from acdc_cli.data import archive
from acdc_cli.data.beton import LONGEST_SIDE

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
_EIGHT_BIT = ("RGB", "L", "1", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class ImageFile:
    pixels: Image.Image
    """RGB."""
    data: bytes
    """The file's own bytes."""
    is_plain_jpeg: bool
    """Whether the file is an RGB or grey JPEG."""


def read_image(path: Path) -> ImageFile:
    """Raises ValueError with the reason if the file is not an image, or cannot be decoded to its end."""
    try:
        data = archive.read_bytes(path)
    # a member that is missing or damaged is one unreadable image
    except (OSError, KeyError, BadZipFile) as cause:
        raise ValueError(getattr(cause, "strerror", None) or str(cause)) from cause
    return decode_image(data)


def decode_image(data: bytes) -> ImageFile:
    """The image of a file's bytes. Raises ValueError as `read_image` does."""
    try:
        with warnings.catch_warnings():
            # about metadata that is not used, of which real photographs have plenty, and about sizes that are checked
            warnings.simplefilter("ignore")
            return _decoded(data)
    except UnidentifiedImageError as cause:
        raise ValueError(f"no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image") from cause
    # whatever a decoder raises over a file's content makes that file an unreadable one
    except Exception as cause:
        raise ValueError(str(cause) or type(cause).__name__) from cause


def _decoded(data: bytes) -> ImageFile:
    if not data:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.mode not in _EIGHT_BIT:
        # Pillow's conversion to RGB would clip them
        raise ValueError(f"its pixels are {image.mode}, not 8 bits per channel: convert it first")
    image.load()
    if max(image.size) > LONGEST_SIDE:
        raise ValueError(f"{image.width}x{image.height} pixels: the longest possible side is {LONGEST_SIDE}")
    is_plain_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return ImageFile(image if image.mode == "RGB" else image.convert("RGB"), data, is_plain_jpeg)
