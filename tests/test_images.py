"""Decoding: what viewers show is read, what belongs to no pixel stops nobody, and no small file costs much."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from robustclip.data import images
from robustclip.data.images import BadImage, decode

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(array, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


BULKY = zlib.compress(bytes(2 << 20))
EXTRAS = {
    "compressed text": chunk(b"zTXt", b"workflow\0\0" + BULKY),
    "international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BULKY),
    "long text": chunk(b"tEXt", b"parameters\0" + b"a" * (65 << 20)),
    "large profile": chunk(b"iCCP", b"profile\0\0" + BULKY),
    "unknown profile": chunk(b"iCCP", b"profile\0\7?"),
    "empty profile": chunk(b"iCCP", b""),
    "short gamma": chunk(b"gAMA", b"?"),
    "damaged text": chunk(b"tEXt", b"k\0v")[:-1] + b"?",
    "broken animation": chunk(b"acTL", b""),
    "private": chunk(b"prVt", b"anything"),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_a_png_says_beside_its_pixels_stops_nobody(extra):
    data, more = encoded(NOISE), EXTRAS[extra]
    assert np.array_equal(decode(data[:33] + more + data[33:]), NOISE)  # behind the 33 bytes of signature and IHDR
    assert np.array_equal(decode(data[:-12] + more + data[-12:]), NOISE)  # before the 12 bytes of IEND


def test_a_png_cut_anywhere_is_still_noticed():
    data = encoded(NOISE)
    data = data[:33] + chunk(b"tEXt", b"k\0" + b"v" * 100) + data[33:]
    for length in (*range(8, 180, 7), *range(180, len(data) - 20, 50)):
        with pytest.raises(BadImage):
            decode(data[:length])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_of_several_frames_the_first_counts(kind):
    frames = [Image.fromarray(np.full((8, 8, 3), (value, 0, 0), np.uint8)) for value in (255, 0)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=100, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(stream.getvalue()), np.asarray(frames[0]))


@pytest.fixture
def asked(monkeypatch):
    """Return the sizes that PIL is asked to scale to; too large a one is refused before it takes memory."""
    sizes, resize = [], Image.Image.resize

    def watched(self, size, *args, **kwargs):
        sizes.append(size)
        assert size[0] * size[1] <= images.SCALED_LIMIT, size
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    return sizes


@pytest.mark.parametrize(("height", "width"), [(20_000, 1), (1, 20_000), (60_000, 2)])
def test_a_thin_image_is_cropped_before_it_is_scaled(height, width, asked):
    data = encoded(np.random.default_rng(0).integers(0, 256, (height, width, 3)))
    assert decode(data, 224).shape == (224, 224, 3)
    assert decode(data, 224, 256).shape == (224, 224, 3)
    assert asked == [(224, 224)] * 2
    with pytest.raises(BadImage, match=r"scaled to \d+ x \d+ pixels are too many"):
        decode(data, None, 224)


@pytest.mark.parametrize(("height", "width"), [(5, 900), (900, 5)])
@pytest.mark.parametrize(("size", "resize"), [(64, None), (48, 64), (3, 4)])
def test_cropping_before_scaling_shows_the_same(height, width, size, resize, monkeypatch):
    y, x = np.mgrid[:height, :width]
    data = encoded(np.stack([x % 200, y % 200, (x + y) % 200], 2))
    after = decode(data, size, resize).astype(int)
    monkeypatch.setattr(images, "SCALED_LIMIT", 0)
    before = decode(data, size, resize).astype(int)
    assert np.ptp(after) > 0
    assert np.abs(before - after).max() <= 1


def test_scans_of_a_jpeg_are_counted_against_its_pixels():
    def rescanned(side, times):
        data = encoded(np.zeros((side, side)), "JPEG", progressive=True)
        last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
        return data[:last] + data[last:end] * times + data[end:]

    assert decode(rescanned(8, 1000)).shape == (8, 8, 3)
    assert decode(rescanned(2000, 5)).shape == (2000, 2000, 3)
    with pytest.raises(BadImage, match="too many scans"):
        decode(rescanned(2000, 1000))
