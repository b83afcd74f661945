"""Images and texts that belong together: pairs of the rendered world, and a prepared set with a file of texts."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.texts import read_texts
from robustclip.base.threads import one_thread
from robustclip.data import world
from robustclip.data.card import DatasetCard
from robustclip.data.datasets import ensure_set
from robustclip.data.index import Index, scan
from robustclip.data.reading import decoded_size, read_images, split_identity, stratified

WORLD = "captions"  # the name of the world's pairs


@dataclass(frozen=True, eq=False)
class Drawn:
    """Images in memory, uint8 [N,S,S,3]."""

    pixels: np.ndarray

    def read(self, places: np.ndarray, model_size: int) -> np.ndarray:
        """Return the images at some places, uint8 [n,S,S,3]."""
        return self.pixels[places]


@dataclass(frozen=True, eq=False)
class Stored:
    """Images of a prepared set: `rows` [N] of the index of a split."""

    card: DatasetCard
    index: Index
    rows: np.ndarray

    def read(self, places: np.ndarray, model_size: int) -> np.ndarray:
        """Return the images at some places, uint8 [n,H,W,3], as a model of that input size is shown them."""
        _, pixels, _ = read_images(self.index, self.rows[places], decoded_size(self.card, model_size), None)
        return pixels


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images and texts in groups: a text is right for every image of its group and for no other, and so is an image for a text.

    `ids` [N] name the images and `image_groups` [N] their groups, by number in `groups`; so `texts` [M] and `text_groups` [M]. `sha256` is
    the hash of all of it, the images too. `skipped` counts images left out because nothing is said of them.
    """

    name: str
    split: str
    ids: tuple[str, ...]
    image_groups: np.ndarray
    texts: tuple[str, ...]
    text_groups: np.ndarray
    groups: tuple[str, ...]
    images: Drawn | Stored
    sha256: str
    skipped: int = 0

    @property
    def shared(self) -> int:
        """The number of texts that are said of several groups: to a model they are one, so each is a tie for the others."""
        of: dict[str, set[int]] = {}
        for text, group in zip(self.texts, self.text_groups.tolist(), strict=True):
            of.setdefault(text, set()).add(group)
        return sum(len(groups) > 1 for groups in of.values())


def of_world(n: int, seed: int) -> Pairs:
    """Return the first n image-caption pairs of the world's corpus of a seed; images of one caption are one group."""
    with one_thread():
        pixels, captions = world.corpus(n, seed)
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    ids = [f"{WORLD}/{seed}/{i:06d}" for i in range(n)]
    source = hashlib.sha256(images.tobytes()).hexdigest()
    return _pairs(WORLD, "drawn", ids, captions, {caption: [caption] for caption in captions}, Drawn(images), source)


def of_set(out: str, name: str, split: str, file: str, n: int | None, drawn: tuple[int, int]) -> Pairs:
    """Return n images (default: all) of a split of a set with what a JSON file says of them, {class or image: [texts]}.

    Where a key of the file is a class name of the set, its keys are classes, and all images of a class are one group. Otherwise they are
    images, by id or by the last part of one, and each image is a group of its own. Images of which nothing is said are left out. The images
    are spread evenly over classes, fixed by their ids. `drawn` is how many images of an embedded set are rendered, and their seed. Raises
    UserError for a file that is no such thing, and for fewer images than asked for.
    """
    said = read_captions(file)
    card = ensure_set(out, name, {split: drawn[0]}, drawn[1])
    index = scan(card.folder, card, split)
    rows = stratified(index, None)
    by_class = not said.keys().isdisjoint(card.class_names)
    ids = index.ids(rows)
    keys = [card.class_names[label] for label in index.label[rows]] if by_class else _named(ids, said, file)
    known = np.array([bool(said.get(key)) for key in keys], dtype=bool)
    if not known.any():
        raise UserError(
            f"{file} says nothing of the {split} images of {name}: its keys, such as {next(iter(said))!r}, are neither classes, such as "
            f"{card.class_names[0]!r}, nor images, such as {ids[0]!r}"
        )
    if int(known.sum()) < (n or 0):
        raise UserError(f"{file} says something of {int(known.sum())} {split} images of {name}; {n} were asked for")
    chosen = np.flatnonzero(known)[:n]
    images = Stored(card, index, rows[chosen])
    source = split_identity(card, split)
    left_out = int((~known).sum())
    return _pairs(name, split, [ids[i] for i in chosen], [keys[i] for i in chosen], said, images, source, left_out)


def _named(ids: Sequence[str], said: Mapping[str, Sequence[str]], file: str) -> list[str]:
    """Return by which key of a file each image goes, its id or the last part of it; an id that is no key stands for itself."""
    short = [storage.name_of(id_) for id_ in ids]
    keys = [id_ if id_ in said or name not in said else name for id_, name in zip(ids, short, strict=True)]
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise UserError(f"{file}: {twice!r} is the name of several images: give their whole ids, such as {ids[keys.index(twice)]!r}")
    return keys


def _pairs(
    name: str,
    split: str,
    ids: Sequence[str],
    keys: Sequence[str],
    said: Mapping[str, Sequence[str]],
    images: Drawn | Stored,
    source: str,
    skipped: int = 0,
) -> Pairs:
    """Return images with the texts of their keys, one group for each key that some image has, in the order of the first image of each."""
    groups = tuple(dict.fromkeys(keys))
    if len(groups) < 2:
        raise UserError(f"{name}: all images are of one group, {groups[0]!r}, so nothing can be mistaken for anything: give more images")
    number = {key: i for i, key in enumerate(groups)}
    texts = [(text, number[key]) for key in groups for text in dict.fromkeys(said[key])]
    image_groups = np.array([number[key] for key in keys])
    whole = json.dumps([name, split, source, list(ids), image_groups.tolist(), texts])
    parts = tuple(text for text, _ in texts), np.array([group for _, group in texts]), groups
    return Pairs(name, split, tuple(ids), image_groups, *parts, images, hashlib.sha256(whole.encode()).hexdigest(), skipped)


def read_captions(file: str) -> dict[str, list[str]]:
    """Return what a JSON file says of classes or images, {key: [texts]}; raises UserError for one that is no such thing."""
    return read_texts(file, "captions", "class or image")
