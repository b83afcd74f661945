"""Webdataset archives: an image and its label under one stem, 000012.jpg and 000012.cls, as CLIP_benchmark keeps its sets."""

import json
import re
from collections.abc import Iterator

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.archives import is_image
from robustclip.data.formats.base import Asked, Item, Reading, lines, numbered, plain, split_of
from robustclip.data.sources import Tree

LABELS = ("cls", "json", "txt")
FEW = 20  # images, of which each may be of a class of its own
KEYS = ("cls", "label", "class")  # of a .json


def read(tree: Tree, asked: Asked) -> Reading | None:
    """Return images with a label of the same stem; classnames.txt has the names in label order, nshards.txt how many archives there are.

    zeroshot_classification_templates.txt has its prompts.
    """
    stems: dict[str, dict[str, str]] = {}
    for name in tree.files:
        stem, _, kind = name.rpartition(".")
        if kind.lower() in LABELS or is_image(name):
            stems.setdefault(stem, {})["image" if is_image(name) else kind.lower()] = name
    pairs = {stem: parts for stem, parts in stems.items() if "image" in parts and len(parts) > 1}
    images = sum("image" in parts for parts in stems.values())
    if not pairs or 2 * len(pairs) < images:
        return None
    _check_shards(tree)
    listing = tree.only(r"classnames\.txt")
    written = tuple(line for _, line in lines(tree, listing)) if listing else ()
    labels = {stem: _label(tree, parts) for stem, parts in stems.items() if "image" in parts}
    numbers = [int(label) for label in labels.values() if label is not None and re.fullmatch(r"\d+", label)]
    if written or numbers:
        keys = written or tuple(str(i) for i in range(max(numbers) + 1))
        names = numbered(tuple(map(plain, written)), asked, len(keys))
        place = {key: i for i, key in enumerate(keys)} | {str(i): i for i in range(len(keys))}
    else:
        keys = tuple(sorted({label for label in labels.values() if label is not None}))
        names, place = tuple(map(plain, keys)), {key: i for i, key in enumerate(keys)}
        if len(labels) > FEW and 2 * len(keys) > len(labels):
            raise UserError(f"{tree}: the texts beside its images are captions and no classes, first {keys[0][:60]!r}; labels are missing")

    def items() -> Iterator[Item]:
        for stem, label in labels.items():
            name = stems[stem]["image"]
            entry = tree.files[name]
            split = split_of(tree, name, asked, entry.inside or storage.name_of(name))
            fault = (
                "its label is missing" if label is None else "" if label in place else f"label {label!r} is none of the {len(keys)} classes"
            )
            yield Item(split, place.get(label or "", -1), _id(stem), entry, fault=fault)

    prompts = tree.only(r"zeroshot_classification_templates\.txt")
    templates = tuple(line.replace("{c}", "{}") for _, line in lines(tree, prompts)) if prompts else ()
    return Reading("webdataset", keys, names, items(), templates=templates)


def _id(stem: str) -> str:
    """Return the last two parts of a stem: a sample's name is its own only in its archive."""
    return "/".join(stem.split("/")[-2:])


def _label(tree: Tree, parts: dict[str, str]) -> str | None:
    for kind in LABELS:
        if kind not in parts:
            continue
        text = tree.text(parts[kind]).strip()
        if kind != "json":
            return text
        try:
            facts = json.loads(text)
        except ValueError:
            continue
        if key := next((key for key in KEYS if isinstance(facts, dict) and key in facts), None):
            return str(facts[key])
    return None


def _check_shards(tree: Tree) -> None:
    """Raise UserError where nshards.txt says that there are more archives than there are."""
    for name in tree.find(r"nshards\.txt"):
        folder, text = name.rpartition("/")[0], tree.text(name).strip()
        there = {each.rpartition("/")[0] for each in tree.files if each.startswith(f"{folder}/" if folder else "") and is_image(each)}
        if text.isdigit() and len(there) < int(text):
            lost = [i for i in range(int(text)) if not any(storage.name_of(each) in (str(i), f"{i:0{len(text)}d}") for each in there)]
            raise UserError(
                f"{tree}: {name} says {text} archives and {len(there)} are there; {lost[0] if lost else 0}.tar, for one, is missing"
            )
