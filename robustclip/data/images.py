"""Encoded bytes to pixels: one way to decode, resize and crop, the same in every place that reads images."""

import io

import numpy as np
from PIL import Image

# Formats that run other programs (EPS) or hold documents (PDF, TIFF) are left out.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
PIXEL_LIMIT = 89_478_485  # where PIL warns of a decompression bomb; here it is an error


class BadImage(Exception):
    """Bytes that are no readable image; the message is the reason, the same on every machine."""


def decode(data: bytes, size: int | None = None, resize: int | None = None, interpolation: str = "bicubic") -> np.ndarray:
    """Return uint8 [H,W,3] RGB: the shorter side scaled to `resize` (or `size`), the centre cropped to size x size.

    Without `size` nothing is cropped, without both the native pixels are returned. Transparency is laid on white, 16-bit grey keeps its
    high byte, EXIF orientation is ignored. Scaling and cropping agree with torchvision's Resize and CenterCrop on PIL images.
    Raises BadImage for bytes that cannot be decoded in full.
    """
    if size is not None and resize is not None and resize < size:
        raise ValueError(f"resize={resize} is smaller than size={size}: the crop would be larger than the image")
    image = _open(data)
    if shorter := resize or size:
        image = _scale(image, shorter, Image.Resampling[interpolation.upper()])
    if size:
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > PIXEL_LIMIT:
            raise BadImage(f"{image.width} x {image.height} pixels are too many: over {PIXEL_LIMIT}")
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


def _scale(image: Image.Image, shorter: int, resampling: Image.Resampling) -> Image.Image:
    width, height = image.size
    if min(width, height) == shorter:
        return image
    target = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    return image.resize(target, resampling)
