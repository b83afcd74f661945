"""Encoded bytes to pixels: one way to decode, resize and crop, the same in every place that reads images."""

import io
import re

import numpy as np
from PIL import Image

# Formats that run other programs (EPS) or hold documents (PDF, TIFF) are left out.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
PIXEL_LIMIT = 89_478_485  # where PIL warns of a decompression bomb; here it is an error
SCALED_LIMIT = 1 << 24  # pixels; what would be scaled to more than this, a thin image, is cropped before and not after
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JPEG_SCAN = re.compile(rb"\xff\xda\x00(?:\x06\x00|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")


class BadImage(Exception):
    """Bytes that are no readable image; the message is the reason, the same on every machine."""


def decode(data: bytes, size: int | None = None, resize: int | None = None, interpolation: str = "bicubic") -> np.ndarray:
    """Return uint8 [H,W,3] RGB: the shorter side scaled to `resize` (or `size`), the centre cropped to size x size.

    Without `size` nothing is cropped, without both the native pixels are returned. Transparency is laid on white, 16-bit grey keeps its
    high byte, EXIF orientation is ignored, of several frames the first counts. Scaling and cropping agree with torchvision's Resize and
    CenterCrop on PIL images. Raises BadImage for bytes that cannot be decoded in full, and for what would be too many pixels.
    """
    if size is not None and resize is not None and resize < size:
        raise ValueError(f"resize={resize} is smaller than size={size}: the crop would be larger than the image")
    image = _open(data)
    width, height = _scaled(*image.size, resize or size)
    resampling = Image.Resampling[interpolation.upper()]
    if (width, height) != image.size:
        if size and width * height > SCALED_LIMIT:
            return np.asarray(_scaled_crop(image, width, height, size, resampling), dtype=np.uint8)
        if width * height > PIXEL_LIMIT:
            raise BadImage(f"scaled to {width} x {height} pixels are too many: over {PIXEL_LIMIT}")
        image = image.resize((width, height), resampling)
    if size:
        image = image.crop(_centre(width, height, size))
    return np.asarray(image, dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(_pixels_only(data)), formats=FORMATS)
        if image.width * image.height > PIXEL_LIMIT:
            raise BadImage(f"{image.width} x {image.height} pixels are too many: over {PIXEL_LIMIT}")
        if data.startswith(JPEG) and image.width * image.height * len(JPEG_SCAN.findall(data)) > 20 * PIXEL_LIMIT:
            raise BadImage("a JPEG of too many scans")  # each goes over all pixels, and an empty one is a few bytes
        image.load()
        return _rgb(image)
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image in a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels: over {PIXEL_LIMIT}") from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes PIL's decoders raise SyntaxError, struct.error, zlib.error, IndexError and more
        raise BadImage(f"{error}" or type(error).__name__) from error


def _pixels_only(data: bytes) -> bytes:
    """Return a PNG without texts, profiles and dates, at which PIL may stop; critical chunks (a capital first) and tRNS make its pixels."""
    if not data.startswith(PNG):
        return data
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 5].isupper() or data[at + 4 : at + 8] == b"tRNS":
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage(f"pixels of mode {image.mode} have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scaled(width: int, height: int, shorter: int | None) -> tuple[int, int]:
    if shorter is None:
        return width, height
    return (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)


def _centre(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def _scaled_crop(image: Image.Image, width: int, height: int, size: int, resampling: Image.Resampling) -> Image.Image:
    """Return the centre of what scaling to width x height would give; nothing else is computed, so PIL may round and clip otherwise."""
    left, top, right, bottom = _centre(width, height, size)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((size, size), resampling, box=box)
