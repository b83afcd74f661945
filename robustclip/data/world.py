"""The embedded world: a caption corpus, a labelled set for fine-tuning and a zero-shot suite, rendered and unlimited.

A rendered world is no benchmark of real CLIP. The corpus names every concept, as CLIP's does; no evaluated image is ever trained on;
one set of the suite (`digits`, scikit-learn's scans) is real, and only `digits` and `sketch` are a shift of appearance.
This specification was fixed before the shipped weights were trained.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robustclip.base.seeds import generator, py_random
from robustclip.data.rendering import (
    COLOUR_NAMES,
    OBJECT_FONTS,
    PATTERNS,
    SIZE,
    TEXT_FONTS,
    Scenes,
    atlas,
    grid_positions,
    random_scenes,
    render,
)

SHAPES = {
    "circle": "●", "square": "■", "triangle": "▲", "diamond": "◆", "star": "★", "pentagon": "⬟", "hexagon": "⬢", "cross": "✚",
    "heart": "♥", "crescent": "☾", "arrow": "➜", "semicircle": "◗",
}  # fmt: skip
CHESS = {"king": "♚", "queen": "♛", "rook": "♜", "bishop": "♝", "knight": "♞", "pawn": "♟"}
WEATHER = {"sun": "☀", "cloud": "☁", "umbrella": "☂", "snowman": "☃", "comet": "☄", "lightning": "⚡", "snowflake": "❄"}
FACES = {"mouse": "🐭", "cow": "🐮", "cat": "🐱", "monkey": "🐵", "smiley": "☺", "skull": "☠"}
TOOLS = {
    "hammer": "⚒", "anchor": "⚓", "sword": "⚔", "scales": "⚖", "scissors": "✂", "pencil": "✏", "pen": "✒", "envelope": "✉", "cup": "☕",
    "house": "⌂",
}  # fmt: skip
LABELLED = {
    "telephone": "☎", "spade": "♠", "club": "♣", "note": "♫", "flag": "⚑", "gear": "⚙", "atom": "⚛", "airplane": "✈", "hand": "✌",
    "recycling": "♻", "keyboard": "⌨", "wheelchair": "♿", "flower": "✿", "dice": "⚄", "shamrock": "☘", "wheel": "☸", "target": "◎",
    "vase": "⚱", "radiation": "☢", "biohazard": "☣", "peace": "☮", "yinyang": "☯", "male": "♂", "female": "♀",
}  # fmt: skip
OBJECTS = SHAPES | CHESS | WEATHER | FACES | TOOLS | LABELLED
THINGS = WEATHER | FACES | TOOLS
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS = DIGITS[1:6]

CHUNK = 500  # images drawn from one generator: a longer set starts with the same images as a shorter one
MAX_GLYPHS = 5


@cache
def glyphs() -> Tensor:
    """Return the atlas of every object (two fonts each), letter and digit (six fonts each), then all of them as outlines."""
    objects = tuple((character, OBJECT_FONTS) for character in OBJECTS.values())
    signs = tuple((sign, TEXT_FONTS) for sign in (*LETTERS, *map(str, range(10))))
    return atlas(objects + signs)


def _object_rows(names: Sequence[str], y: Tensor, outlined: Tensor, g: Generator) -> Tensor:
    """Return atlas rows of the objects names[y] in a random font, as outlines where `outlined`."""
    position = {name: i for i, name in enumerate(OBJECTS)}
    row = torch.tensor([position[name] for name in names])[y] * len(OBJECT_FONTS)
    row = row + torch.randint(len(OBJECT_FONTS), y.shape, generator=g)
    return row + outlined * (len(glyphs()) // 2)


def _sign_rows(y: Tensor, g: Generator) -> Tensor:
    """Return atlas rows of the signs y (0-25 letters, 26-35 digits) in a random font."""
    return len(OBJECTS) * len(OBJECT_FONTS) + y * len(TEXT_FONTS) + torch.randint(len(TEXT_FONTS), y.shape, generator=g)


def _sometimes(n: int, share: float, first: int, g: Generator) -> Tensor:
    """Return [n] pattern rows: 0 (plain), or with probability `share` a random one from `first` on."""
    chosen = torch.rand(n, generator=g) < share
    return torch.where(chosen, torch.randint(first, len(PATTERNS), (n,), generator=g), 0)


def _object_scenes(names: Sequence[str], n: int, g: Generator, outlined: float = 0.15) -> tuple[Scenes, Tensor]:
    scenes, y = random_scenes(n, 1, g), torch.randint(len(names), (n,), generator=g)
    scenes.glyph[:, 0] = _object_rows(names, y, torch.rand(n, generator=g) < outlined, g)
    scenes.backdrop, scenes.texture = _sometimes(n, 0.35, 0, g), _sometimes(n, 0.25, 0, g)
    return scenes, y


def _objects(names: Sequence[str]) -> Callable[[int, Generator], tuple[Scenes, Tensor]]:
    return lambda n, g: _object_scenes(names, n, g)


def _coloured(names: Sequence[str]) -> Callable[[int, Generator], tuple[Scenes, Tensor]]:
    def scenes(n: int, g: Generator) -> tuple[Scenes, Tensor]:
        drawn, y = _object_scenes(names, n, g)
        return drawn, drawn.colour * len(names) + y

    return scenes


def _sketches(n: int, g: Generator) -> tuple[Scenes, Tensor]:
    scenes, y = _object_scenes(tuple(SHAPES), n, g, outlined=1.0)
    scenes.colour[:], scenes.background[:] = COLOUR_NAMES.index("black"), COLOUR_NAMES.index("white")
    scenes.texture[:], scenes.backdrop[:] = 0, 0
    return scenes, y


def _colours(n: int, g: Generator) -> tuple[Scenes, Tensor]:
    scenes, _ = _object_scenes(tuple(OBJECTS), n, g)
    scenes.texture[:] = 0
    return scenes, scenes.colour


def _patterns(n: int, g: Generator) -> tuple[Scenes, Tensor]:
    scenes = random_scenes(n, 1, g)
    scenes.backdrop, scenes.strength[:] = torch.randint(1, len(PATTERNS), (n,), generator=g), 0.9
    return scenes, scenes.backdrop - 1


def _letters(n: int, g: Generator) -> tuple[Scenes, Tensor]:
    scenes, y = random_scenes(n, 1, g), torch.randint(len(LETTERS), (n,), generator=g)
    scenes.glyph[:, 0] = _sign_rows(y, g)
    scenes.rotation *= 0.5
    return scenes, y


def _counts(n: int, g: Generator) -> tuple[Scenes, Tensor]:
    scenes, y = random_scenes(n, MAX_GLYPHS, g), torch.randint(len(COUNTS), (n,), generator=g)
    kind = torch.randint(len(SHAPES), (n,), generator=g)
    row = _object_rows(tuple(SHAPES), kind, torch.zeros(n, dtype=torch.bool), g)
    scenes.glyph = torch.where(torch.arange(MAX_GLYPHS)[None] <= y[:, None], row[:, None], -1)
    scenes.position, scenes.scale = grid_positions(n, MAX_GLYPHS, g), scenes.scale * 0.2 + 0.17
    return scenes, y


@dataclass(frozen=True)
class WorldSet:
    """One labelled set of the world: its class names, prompt templates and the scenes it is drawn from (None: the real scans)."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    scenes: Callable[[int, Generator], tuple[Scenes, Tensor]] | None


PHOTO = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
DIGIT = ("a photo of the digit {}.", "the number {}.")


def _pairs(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{colour} {name}" for colour in COLOUR_NAMES for name in names)


SETS: dict[str, WorldSet] = {
    "labelled": WorldSet(_pairs(tuple(LABELLED)), PHOTO, _coloured(tuple(LABELLED))),
    "shapes": WorldSet(tuple(SHAPES), PHOTO, _objects(tuple(SHAPES))),
    "chess": WorldSet(tuple(CHESS), PHOTO, _objects(tuple(CHESS))),
    "weather": WorldSet(tuple(WEATHER), PHOTO, _objects(tuple(WEATHER))),
    "faces": WorldSet(tuple(FACES), PHOTO, _objects(tuple(FACES))),
    "tools": WorldSet(tuple(TOOLS), PHOTO, _objects(tuple(TOOLS))),
    "sketch": WorldSet(tuple(SHAPES), ("a sketch of a {}.", "an outline of a {}."), _sketches),
    "letters": WorldSet(tuple(letter.lower() for letter in LETTERS), ("a photo of the letter {}.",), _letters),
    "patterns": WorldSet(PATTERNS[1:], ("a photo of a {} pattern.", "a {} texture."), _patterns),
    "colours": WorldSet(COLOUR_NAMES, ("a photo of a {} object.", "a {} thing."), _colours),
    "counts": WorldSet(COUNTS, ("a photo of {} objects.", "{} shapes."), _counts),
    "things": WorldSet(_pairs(tuple(THINGS)), PHOTO, _coloured(tuple(THINGS))),
    "digits": WorldSet(DIGITS, DIGIT, None),
}
FINE_TUNING = "labelled"
SUITE = tuple(name for name in SETS if name != FINE_TUNING)


def images(name: str, n: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Return the first n images of a set's split: uint8 [n,3,32,32] and labels [n]; the scans of `digits` are shuffled once by seed."""
    world_set = SETS[name]
    if world_set.scenes is None:
        return _scanned_digits(n, seed, split)
    drawn = []
    for chunk in range(-(-n // CHUNK)):
        g = generator(seed, "world", name, split, chunk)
        scenes, y = world_set.scenes(CHUNK, g)
        drawn.append((render(scenes, glyphs(), g), y))
    return torch.cat([x for x, _ in drawn])[:n], torch.cat([y for _, y in drawn])[:n]


def _scanned_digits(n: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 8 x 8 scans at 24 px on a black 32 px canvas; every one belongs to the test split."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    if split != "test" or n > len(scans.target):
        raise ValueError(f"digits: the real scans have one split, test, of {len(scans.target)} images; {split} of {n} was asked for")
    order = torch.randperm(len(scans.target), generator=generator(seed, "digits"))[:n]
    x = torch.tensor(scans.images, dtype=torch.float32)[order, None] / 16
    x = F.pad(F.interpolate(x, size=(24, 24), mode="bilinear"), ((SIZE - 24) // 2,) * 4)
    return (x.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8), torch.tensor(scans.target)[order]


KINDS = ("object", "sign", "pattern", "count")
KIND_SHARES = (0.62, 0.16, 0.12, 0.10)


def corpus(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """Return n image-caption pairs for pre-training: uint8 [n,3,32,32] and captions naming a random subset of what is drawn."""
    pictures, captions = [], []
    for chunk in range(-(-n // CHUNK)):
        g, words = generator(seed, "world", "corpus", chunk), py_random(seed, "world", "captions", chunk)
        scenes, facts = _corpus_scenes(CHUNK, g)
        pictures.append(render(scenes, glyphs(), g))
        captions += [_caption(scenes, facts, i, words) for i in range(CHUNK)]
    return torch.cat(pictures)[:n], captions[:n]


@dataclass
class _Facts:
    """What a corpus scene shows besides its colours: rows of KINDS, OBJECTS, signs and counts, [n] each."""

    kind: Tensor
    object_: Tensor
    sign: Tensor
    count: Tensor
    outlined: Tensor


def _corpus_scenes(n: int, g: Generator) -> tuple[Scenes, _Facts]:
    scenes = random_scenes(n, MAX_GLYPHS, g)
    facts = _Facts(
        kind=torch.multinomial(torch.tensor(KIND_SHARES), n, replacement=True, generator=g),
        object_=torch.randint(len(OBJECTS), (n,), generator=g),
        sign=torch.randint(len(LETTERS) + 10, (n,), generator=g),
        count=torch.randint(len(COUNTS), (n,), generator=g),
        outlined=torch.rand(n, generator=g) < 0.15,
    )
    is_sign, is_pattern, is_count = (facts.kind == KINDS.index(kind) for kind in ("sign", "pattern", "count"))
    scenes.backdrop, scenes.texture = _sometimes(n, 0.35, 0, g), _sometimes(n, 0.25, 0, g)
    scenes.backdrop[is_count], scenes.texture[is_sign | is_count] = 0, 0
    patterns = torch.randint(1, len(PATTERNS), (n,), generator=g)
    scenes.backdrop, scenes.strength = torch.where(is_pattern, patterns, scenes.backdrop), torch.where(is_pattern, 0.9, scenes.strength)
    objects, signs = _object_rows(tuple(OBJECTS), facts.object_, facts.outlined, g), _sign_rows(facts.sign, g)
    scenes.glyph[:, 0] = torch.where(is_sign, signs, objects).masked_fill(is_pattern, -1)
    repeated = is_count[:, None] & (facts.count[:, None] >= torch.arange(1, MAX_GLYPHS))
    scenes.glyph[:, 1:] = torch.where(repeated, objects[:, None], -1)
    scenes.position = torch.where(is_count[:, None, None], grid_positions(n, MAX_GLYPHS, g), scenes.position)
    scenes.scale = torch.where(is_count[:, None], scenes.scale * 0.2 + 0.17, scenes.scale)
    scenes.rotation[is_sign] *= 0.5
    return scenes, facts


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _caption(scenes: Scenes, facts: _Facts, i: int, r: random.Random) -> str:
    """Return one caption of scene i; which attributes it names is drawn from `r`."""
    opening = r.choice(("a photo of", "a picture of", "an image of", "a drawing of", ""))
    colour, background, second = (COLOUR_NAMES[int(c[i])] for c in (scenes.colour, scenes.background, scenes.second))
    backdrop, texture = PATTERNS[int(scenes.backdrop[i])], PATTERNS[int(scenes.texture[i])]
    noun, kind = tuple(OBJECTS)[int(facts.object_[i])], KINDS[int(facts.kind[i])]
    ending = ""
    if r.random() < 0.3 and kind != "pattern":
        named = background if backdrop == "plain" or r.random() < 0.5 else f"{backdrop} {background}"
        ending = f" on {_article(named)} background"
    if kind == "object":
        adjectives = [colour] if r.random() < 0.5 else []
        if texture != "plain" and r.random() < 0.6:
            adjectives.append(texture)
        if facts.outlined[i] and r.random() < 0.5:
            opening = r.choice(("a sketch of", "an outline of"))
        if r.random() < 0.06:
            noun, adjectives = r.choice(("object", "thing")), [colour, *(a for a in adjectives if a != colour)]
        text = _article(" ".join([*adjectives, noun]))
    elif kind == "sign":
        sign = int(facts.sign[i])
        text = f"the letter {LETTERS[sign].lower()}" if sign < 26 else f"{r.choice(('the digit', 'the number'))} {DIGITS[sign - 26]}"
        text += f" in {colour}" if r.random() < 0.5 else ""
    elif kind == "pattern":
        colours = f"{background} and {second} " if r.random() < 0.5 else ""
        text = f"{_article(backdrop)} {colours}{r.choice(('pattern', 'texture'))}"
    else:
        count, noun = int(facts.count[i]), noun if r.random() < 0.6 else r.choice(("object", "shape"))
        plural = "s" if count and not noun.endswith("s") else ""
        text = f"{COUNTS[count]} {colour + ' ' if r.random() < 0.4 else ''}{noun}{plural}"
    return f"{opening} {text}{ending}.".strip()
