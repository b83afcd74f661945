"""Vectorised renderer of the embedded world: glyphs of the fonts matplotlib carries, coloured, textured and placed on 32 x 32 px."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 32
CONTRAST = (0.4, 0.9)
NOISE = (0.0, 0.015)

COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.93, 0.87, 0.15),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.20, 0.80, 0.82),
    "blue": (0.15, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (0.97, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.12),
    "black": (0.06, 0.06, 0.06),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.50, 0.50, 0.50),
}
COLOUR_NAMES = tuple(COLOURS)
PATTERNS = ("plain", "striped", "checkered", "dotted", "grid", "wavy", "ringed", "zigzag", "speckled", "gradient")

OBJECT_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
TEXT_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "STIXGeneralBol.ttf", "cmss10.ttf")


@dataclass
class Scenes:
    """A batch of n scenes of at most K glyphs; `render` turns it into images.

    glyph [n,K]: row of the atlas, -1 for none; scale, rotation [n,K]; position [n,K,2] in [-1,1];
    colour, background, second [n]: rows of COLOURS; texture, backdrop [n]: rows of PATTERNS; strength [n]: opacity of the backdrop.
    """

    glyph: Tensor
    scale: Tensor
    rotation: Tensor
    position: Tensor
    colour: Tensor
    background: Tensor
    second: Tensor
    texture: Tensor
    backdrop: Tensor
    strength: Tensor


def random_scenes(n: int, k: int, g: Generator) -> Scenes:
    """Return n empty scenes for k glyphs each, with random colours (background distinct from the object), sizes and places."""
    rgb = torch.tensor(list(COLOURS.values()))
    distinct = (torch.cdist(rgb, rgb) > 0.5).float()
    colour = torch.randint(len(COLOURS), (n,), generator=g)
    background = torch.multinomial(distinct[colour], 1, generator=g)[:, 0]
    return Scenes(
        glyph=torch.full((n, k), -1),
        scale=torch.rand(n, k, generator=g) * 0.33 + 0.62,
        rotation=(torch.rand(n, k, generator=g) - 0.5) * 0.5,
        position=(torch.rand(n, k, 2, generator=g) - 0.5) * 0.32,
        colour=colour,
        background=background,
        second=torch.multinomial(distinct[background], 1, generator=g)[:, 0],
        texture=torch.zeros(n, dtype=torch.long),
        backdrop=torch.zeros(n, dtype=torch.long),
        strength=torch.rand(n, generator=g) * 0.25 + 0.1,
    )


def grid_positions(n: int, k: int, g: Generator) -> Tensor:
    """Return [n,k,2] places of k glyphs on different cells of a 3 x 3 grid, jittered."""
    cells = torch.tensor([[x, y] for y in (-0.62, 0.0, 0.62) for x in (-0.62, 0.0, 0.62)])
    chosen = torch.rand(n, 9, generator=g).argsort(1)[:, :k]
    return cells[chosen] + (torch.rand(n, k, 2, generator=g) - 0.5) * 0.12


def _glyph(font: str, character: str) -> np.ndarray:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    canvas = Image.new("L", (220, 220), 0)
    ImageDraw.Draw(canvas).text((40, 40), character, font=ImageFont.truetype(str(path), 96), fill=255)
    ink = canvas.crop(canvas.getbbox())
    side = int(max(ink.size) * 1.12) + 2
    square = Image.new("L", (side, side), 0)
    square.paste(ink, ((side - ink.size[0]) // 2, (side - ink.size[1]) // 2))
    return np.asarray(square.resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255


@cache
def atlas(characters: tuple[tuple[str, tuple[str, ...]], ...]) -> Tensor:
    """Return [2N,64,64] masks: N = one glyph per (character, font) pair in order, then the same N as outlines (a sketch)."""
    filled = torch.from_numpy(np.stack([_glyph(font, character) for character, fonts in characters for font in fonts]))[:, None]
    dilated, eroded = F.max_pool2d(filled, 5, 1, 2), -F.max_pool2d(-filled, 3, 1, 1)
    outline = F.avg_pool2d((dilated - eroded).clamp(0, 1), 3, 1, 1)
    return torch.cat([filled, outline])[:, 0]


# The waves behind the patterns: u, v rotated coordinates, f frequency, p and q phases.
WAVES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "striped": lambda u, v, f, p, q: torch.sin(f * u + p),
    "checkered": lambda u, v, f, p, q: 2 * torch.sin(0.8 * f * u + p) * torch.sin(0.8 * f * v + q),
    "dotted": lambda u, v, f, p, q: torch.sin(f * u + p) + torch.sin(f * v + q) - 1,
    "grid": lambda u, v, f, p, q: 2 * torch.maximum(torch.sin(0.8 * f * u + p), torch.sin(0.8 * f * v + q)) - 1.3,
    "wavy": lambda u, v, f, p, q: torch.sin(f * u + p + 1.6 * torch.sin(6 * v + q)),
    "ringed": lambda u, v, f, p, q: torch.sin(1.3 * f * torch.sqrt((u - 0.3 * p.cos()) ** 2 + (v - 0.3 * q.cos()) ** 2) + p),
    "zigzag": lambda u, v, f, p, q: torch.sin(f * u + p + 2.2 * torch.asin(torch.sin(7 * v + q))),
}


def _pattern_masks(kind: Tensor, size: int, g: Generator) -> Tensor:
    """Return [n,size,size] masks in [0,1] of the patterns `kind` at random angle, frequency and phase."""
    n = len(kind)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, 1, generator=g) * (high - low) + low

    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    angle, frequency, phase, shift = uniform(0, math.pi), uniform(7, 15), uniform(0, 2 * math.pi), uniform(0, 2 * math.pi)
    grains = torch.randn(n, 1, size // 3, size // 3, generator=g)
    masks = torch.zeros(n, size, size)
    for index, name in enumerate(PATTERNS):
        rows = (kind == index).nonzero()[:, 0]
        if name == "plain" or not len(rows):
            continue
        a = angle[rows]
        u, v = x * a.cos() + y * a.sin(), -x * a.sin() + y * a.cos()
        if name == "gradient":
            masks[rows] = (u * 0.6 + 0.5).clamp(0, 1)
        elif name == "speckled":
            masks[rows] = F.interpolate(torch.sigmoid(6 * (2 * grains[rows] - 1.6)), size=(size, size))[:, 0]
        else:
            masks[rows] = torch.sigmoid(6 * WAVES[name](u, v, frequency[rows], phase[rows], shift[rows]))
    return masks


def _jittered(colour: Tensor, g: Generator) -> Tensor:
    rgb = torch.tensor(list(COLOURS.values()))[colour]
    return (rgb + 0.07 * torch.randn(len(colour), 3, generator=g)).clamp(0, 1)[:, :, None, None]


def render(scenes: Scenes, glyphs: Tensor, g: Generator) -> Tensor:
    """Return uint8 images [n,3,32,32] of `scenes` drawn with the masks `glyphs` (see `atlas`)."""
    size = 2 * SIZE  # drawn at twice the size, then averaged down: smooth edges
    background, second, ink = (_jittered(c, g) for c in (scenes.background, scenes.second, scenes.colour))
    backdrop = _pattern_masks(scenes.backdrop, size, g)[:, None] * scenes.strength[:, None, None, None]
    texture = _pattern_masks(scenes.texture, size, g)[:, None] * 0.75
    image = background * (1 - backdrop) + second * backdrop
    object_ = ink * (1 - texture) + second * texture
    for j in range(scenes.glyph.shape[1]):
        rows = (scenes.glyph[:, j] >= 0).nonzero()[:, 0]
        if not len(rows):
            continue
        place, scale, turn = scenes.position[rows, j], scenes.scale[rows, j], scenes.rotation[rows, j]
        cos, sin = turn.cos() / scale, turn.sin() / scale
        inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        affine = torch.cat([inverse, -inverse @ place[:, :, None]], 2)
        grid = F.affine_grid(affine, [len(rows), 1, size, size], align_corners=False)
        mask = F.grid_sample(glyphs[scenes.glyph[rows, j]][:, None], grid, align_corners=False)
        image[rows] = image[rows] * (1 - mask) + object_[rows] * mask
    return _photograph(F.avg_pool2d(image, 2), g)


def _photograph(image: Tensor, g: Generator) -> Tensor:
    """Squeeze the contrast around a random brightness, add a light gradient and sensor noise, round to 8 bits."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(image), 1, 1, 1, generator=g) * (high - low) + low

    contrast, brightness = uniform(*CONTRAST), uniform(0, 1)
    ramp = torch.linspace(-1, 1, SIZE)
    image = contrast * image + (1 - contrast) * brightness
    image = image + uniform(-0.08, 0.08) * ramp[None, None, :, None] + uniform(-0.08, 0.08) * ramp[None, None, None, :]
    image = image + uniform(*NOISE) * torch.randn(image.shape, generator=g)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
