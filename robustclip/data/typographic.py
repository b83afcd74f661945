"""The typographic attack (Goh et al. 2021, "Multimodal neurons"): on every image of a set the name of another of its classes is written.

`typographic:SET` is any set, embedded or prepared, with such words, drawn on the images as they are attacked: nothing is stored, and ids
and labels stay. Synthetic words as in the code of Azuma and Matsui 2023 (arXiv:2304.04512): a random other class, font, place and size, in
one colour with an edge of another; their fonts are not ours, and which word is where depends here on (seed, id) alone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from robustclip.base.errors import UserError
from robustclip.base.seeds import derive, py_random
from robustclip.data.rendering import COLOURS, TEXT_FONTS

SIZES = (20 / 224, 40 / 224)  # of a font, in sides of the image
LEAST = 8.0  # pixels of a font: letters of fewer run together; only a long word on a small image has them
SMALLEST = 16  # pixels of a side on which a word can be written
EDGE = 1 / 20  # of the font's size
FINE = 4  # letters are drawn so many times larger, then averaged down: smooth
DISTINCT = 0.5  # two colours are at least so far apart in RGB, as in the rendered world


def written(seed: int, image_id: str, label: int, class_names: Sequence[str]) -> int:
    """Return the class whose name is written on an image of a class: any other one that is called otherwise; UserError where none is."""
    others = [k for k, name in enumerate(class_names) if name != class_names[label]]
    if not others:
        raise UserError(f"all classes are called {class_names[label]!r}: there is no other name to write on an image")
    return others[derive(seed, "typographic word", image_id) % len(others)]


def with_words(pixels: np.ndarray, ids: Sequence[str], labels: np.ndarray, class_names: Sequence[str], seed: int) -> np.ndarray:
    """Return images uint8 [n,H,W,3] with labels [n] as new ones, on each the name of the class that `written` gives.

    Raises UserError for images on which no word can be read.
    """
    if min(pixels.shape[1:3]) < SMALLEST:
        raise UserError(f"{ids[0]}: no word can be read on images of {pixels.shape[2]} x {pixels.shape[1]} px, under {SMALLEST}")
    words = [class_names[written(seed, image_id, int(label), class_names)] for image_id, label in zip(ids, labels, strict=True)]
    drawn = (write(*each) for each in zip(pixels, words, (py_random(seed, "typographic look", image_id) for image_id in ids), strict=True))
    return np.stack(list(drawn))


def write(pixels: np.ndarray, word: str, r: Random) -> np.ndarray:
    """Return an image uint8 [H,W,3] with a word on it whose look and place are drawn from `r`."""
    height, width = pixels.shape[:2]
    font = r.choice(TEXT_FONTS) if word.isascii() else TEXT_FONTS[0]  # the others lack letters with accents
    size = max(r.uniform(*SIZES) * min(height, width), LEAST)
    ink, edge = _colours(r)
    filled, all_of_it = _masks(_lines(word), font, size, height, width)
    top, left = (r.randint(0, room - mask) for room, mask in zip((height, width), filled.shape, strict=True))
    place = (slice(top, top + filled.shape[0]), slice(left, left + filled.shape[1]))
    image = pixels.astype(np.float32)
    for mask, colour in ((all_of_it, edge), (filled, ink)):
        image[place] += mask[..., None] * (255 * colour - image[place])
    return image.round().clip(0, 255).astype(np.uint8)


def _colours(r: Random) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours [3] in [0,1] of letters and of their edge, which can be told apart."""
    colours = [np.array(rgb, np.float32) for rgb in COLOURS.values()]
    ink = r.choice(colours)
    return ink, r.choice([other for other in colours if np.linalg.norm(other - ink) > DISTINCT])


def _lines(word: str) -> str:
    """Return a name on two lines where it has several words: broken where the longer line is shortest."""
    parts = word.split()
    breaks = [(" ".join(parts[:k]), " ".join(parts[k:])) for k in range(1, len(parts))]
    return "\n".join(min(breaks, key=lambda pair: max(map(len, pair)))) if breaks else word


def _masks(text: str, font: str, size: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks [h,w] in [0,1] of a text, of its letters and of these with their edge, in a font made smaller until it fits."""
    from PIL import Image, ImageDraw

    def box(points: int) -> tuple[dict[str, Any], tuple[float, float, float, float]]:
        edge = max(1, round(EDGE * points))
        about = {"font": _font(font, points), "align": "center", "spacing": edge, "stroke_width": edge}
        return about, ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, **about)

    points = round(FINE * size)
    about, (left, top, right, bottom) = box(points)
    while right - left > FINE * width or bottom - top > FINE * height:
        points -= 1
        if not points:
            raise UserError(f"{text!r} is too long a name to be written on images of {width} x {height} px")
        about, (left, top, right, bottom) = box(points)
    shape = (FINE * math.ceil((right - left) / FINE), FINE * math.ceil((bottom - top) / FINE))

    def mask(edge: int) -> np.ndarray:
        canvas = Image.new("L", shape, 0)
        ImageDraw.Draw(canvas).multiline_text((-left, -top), text, fill=255, stroke_fill=edge, **about)
        return np.asarray(canvas.reduce(FINE), np.float32) / 255

    return mask(0), mask(255)


@lru_cache(256)
def _font(name: str, points: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # Pillow's own layout: the other one depends on what a system has installed.
    return ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
