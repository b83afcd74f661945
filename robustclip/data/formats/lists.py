"""Sets whose splits are lists of images beside them: DTD, Food-101, FGVC Aircraft, Oxford Pets, SUN397, CoOp's JSON, one's own."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.archives import is_image
from robustclip.data.formats.base import SPLIT_NAMES, Asked, Images, Item, Listed, Reading, agreed, lines, listed, numbered, plain, require
from robustclip.data.sources import Tree, stem_of


def _reading(name: str, tree: Tree, images: Images, rows: Iterator[Listed], keys: tuple[str, ...], names: tuple[str, ...] = ()) -> Reading:
    """Return what lists make of images whose classes are called by their keys."""
    place = {key: i for i, key in enumerate(keys)}
    items = listed(images, rows, place.get, len(keys))
    return Reading(name, keys, names or tuple(map(plain, keys)), items, said=images.beside())


def textures(tree: Tree, asked: Asked) -> Reading | None:
    """Read DTD: labels/{train,val,test}1.txt (its first partition) name images/CLASS/CLASS_0001.jpg."""
    found = {split: tree.only(rf"labels/{split}1\.txt") for split in ("train", "val", "test")}
    images = Images(tree, "images")
    if not any(found.values()):
        return None
    require(tree, "lists of the Describable Textures", {f"labels/{split}1.txt": name for split, name in found.items()})
    require(tree, "lists of the Describable Textures are there", {"images/": images.files})
    rows = [
        Listed(f"{storage.name_of(name)}, line {number}", split, line, line.partition("/")[0])
        for split, name in found.items()
        if name
        for number, line in lines(tree, name)
    ]
    return _reading("DTD's lists", tree, images, iter(rows), tuple(sorted({row.key for row in rows})))


def food(tree: Tree, asked: Asked) -> Reading | None:
    """Read Food-101: meta/train.json or meta/train.txt, and test, name images/CLASS/NUMBER.jpg without its suffix."""
    found = {split: tree.only(rf"meta/{split}\.txt") or tree.only(rf"meta/{split}\.json") for split in ("train", "test")}
    if not any(found.values()):
        return None
    require(tree, "lists of Food-101", {f"meta/{split}.txt or .json": name for split, name in found.items()})
    images = Images(tree, "images")
    require(tree, "the lists of Food-101 are there", {"images/": images.files})
    rows: list[Listed] = []
    for split, name in found.items():
        if name and name.endswith(".json"):
            facts = _json(tree, name)
            if not isinstance(facts, dict):
                raise UserError(f"{tree}: {name} is no list of images by class; fetch it again")
            pairs = [(f"{storage.name_of(name)}, {key}", each) for key, value in facts.items() for each in value]
        else:
            pairs = [(f"{storage.name_of(name or '')}, line {number}", line) for number, line in lines(tree, name or "")]
        rows += [Listed(where, split, f"{image}.jpg", image.partition("/")[0]) for where, image in pairs]
    return _reading("Food-101's lists", tree, images, iter(rows), tuple(sorted({row.key for row in rows})))


def aircraft(tree: Tree, asked: Asked) -> Reading | None:
    """Read FGVC Aircraft by variant: images_variant_{train,val,test}.txt name images/NUMBER.jpg, variants.txt the classes."""
    found = {split: tree.only(rf"images_variant_{split}\.txt") for split in ("train", "val", "test")}
    if not any(found.values()):
        return None
    variants = tree.only(r"variants\.txt")
    require(
        tree, "lists of FGVC Aircraft", {f"images_variant_{split}.txt": name for split, name in found.items()} | {"variants.txt": variants}
    )
    images = Images(tree, "images")
    require(tree, "the lists of FGVC Aircraft are there", {"images/": images.files})
    keys = tuple(line for _, line in lines(tree, variants or ""))
    rows = (
        Listed(f"{storage.name_of(name)}, line {number}", split, f"{image}.jpg", variant)
        for split, name in found.items()
        if name
        for number, line in lines(tree, name)
        for image, _, variant in [line.partition(" ")]
    )
    return _reading("FGVC Aircraft's lists", tree, images, rows, keys, keys)


def pets(tree: Tree, asked: Asked) -> Reading | None:
    """Read Oxford Pets: annotations/trainval.txt and test.txt have lines 'Abyssinian_100 1 1 1': image, class from 1, species, breed."""
    found = {"train": tree.only(r"annotations/trainval\.txt"), "test": tree.only(r"annotations/test\.txt")}
    if not any(found.values()):
        return None
    files = {"annotations/trainval.txt": found["train"], "annotations/test.txt": found["test"]}
    require(tree, "lists of Oxford Pets", files)
    images = Images(tree, "images")
    require(tree, "the lists of Oxford Pets are there", {"images/": images.files})
    rows: list[Listed] = []
    breeds: dict[int, str] = {}
    for split, name in found.items():
        for number, line in lines(tree, name or ""):
            words = line.split()
            where = f"{storage.name_of(name or '')}, line {number}"
            if len(words) < 2 or not words[1].isdigit():
                raise UserError(f"{tree}: {where}: {line!r} is no 'image class species breed'; fetch the list again")
            breeds.setdefault(int(words[1]), words[0].rpartition("_")[0])
            rows.append(Listed(where, split, f"{words[0]}.jpg", breeds[int(words[1])]))
    keys = tuple(breeds[number] for number in sorted(breeds))
    return _reading("Oxford Pets' lists", tree, images, iter(rows), keys, tuple(key.replace("_", " ").title() for key in keys))


def scenes(tree: Tree, asked: Asked) -> Reading | None:
    """Read SUN397: ClassName.txt lists /a/abbey, folders of images; all of them are one split, Training_01.txt and Testing_01.txt more."""
    classes = tree.only(r"ClassName\.txt")
    if classes is None:
        return None
    keys = tuple(line.strip("/") for _, line in lines(tree, classes))
    images = Images(tree)
    place = {key: i for i, key in enumerate(keys)}
    under = sorted({name.rpartition("/")[0] for name in images.files if is_image(name)})
    folder = {each: key for each in under for key in [_ending(each, place)] if key}
    items = [
        Item(asked.whole or "all", place[key], f"{key}/{storage.name_of(name)}", entry, fault=entry.fault)
        for name, entry in images.files.items()
        if is_image(name) and (key := folder.get(name.rpartition("/")[0]))
    ]
    images.used.update(name for name in images.files if name.rpartition("/")[0] in folder)
    if empty := [key for key in keys if key not in folder.values()]:
        raise UserError(
            f"{tree}: {len(empty)} of the {len(keys)} folders of ClassName.txt hold no image, first {empty[0]}; fetch the set again"
        )
    for split, part in (("train", "Training"), ("test", "Testing")):
        if name := tree.only(rf"{part}_01\.txt"):
            rows = (
                Listed(f"{part}_01.txt, line {number}", split, line.strip("/"), line.strip("/").rpartition("/")[0])
                for number, line in lines(tree, name)
            )
            items += listed(images, rows, place.get, len(keys))
    names = tuple(plain(" ".join(reversed(key.split("/")[1:]))) for key in keys)
    return Reading("SUN397's ClassName.txt", keys, names, items, shared=True, said=images.beside())


def _ending(folder: str, keys: Mapping[str, Any]) -> str | None:
    parts = folder.split("/")
    return next((key for i in range(len(parts)) if (key := "/".join(parts[i:])) in keys), None)


def coop(tree: Tree, asked: Asked) -> Reading | None:
    """Read CoOp's split_zhou_NAME.json, {train, val, test} of [image, label, class name], as the splits coop-train, coop-val, coop-test."""
    name = tree.only(r"split_zhou_\w+\.json")
    if name is None:
        return None
    facts = _json(tree, name)
    where = storage.name_of(name)
    if not isinstance(facts, dict) or not all(isinstance(part, list) for part in facts.values()) or "test" not in facts:
        raise UserError(f"{tree}: {where} is no {{train, val, test}} of lists; fetch it again")
    rows: list[Listed] = []
    classes: dict[int, str] = {}
    for split, part in facts.items():
        for number, row in enumerate(part):
            if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], int)):
                raise UserError(f"{tree}: {where}: {split}, row {number} is no [image, label, class name]; fetch it again")
            if classes.setdefault(row[1], str(row[2])) != str(row[2]):
                raise UserError(f"{tree}: {where}: {split}, row {number}: class {row[1]} is {row[2]!r} here and {classes[row[1]]!r} before")
            rows.append(Listed(f"{where}: {split}, row {number}", f"coop-{split}", row[0], row[1]))
    if sorted(classes) != [*range(len(classes))]:
        raise UserError(f"{tree}: {where}: its {len(classes)} labels are not 0 to {len(classes) - 1}; fetch it again")
    images = Images(tree)
    names = tuple(classes[label] for label in range(len(classes)))
    items = listed(images, rows, lambda key: key, len(names))
    return Reading("CoOp's split_zhou JSON", names, tuple(map(plain, names)), items, said=images.beside())


def _json(tree: Tree, name: str) -> Any:
    try:
        return json.loads(tree.text(name))
    except ValueError as error:
        raise UserError(f"{tree}: {name} is not valid JSON ({error}); fetch it again") from error


def own(tree: Tree, asked: Asked) -> Reading | None:
    """Read train.txt, val.csv, test.tsv or labels.csv of lines 'image class'; classes.txt or classnames.txt gives the order, or the names.

    A class is its name or, with classes.txt or without any names, its number from 0.
    """
    found = {name: SPLIT_NAMES.get(stem_of(name).lower()) for name in tree.find(r"(?:\w+|labels)\.(?:txt|csv|tsv)")}
    found = {name: split for name, split in found.items() if split or stem_of(name) == "labels"}
    rows: list[Listed] = []
    for name, split in found.items():
        rows += _own_rows(tree, name, split, asked)
    if not rows:
        return None
    listing = tree.only(r"class(?:es|names)\.txt")
    written = tuple(line for _, line in lines(tree, listing)) if listing else ()
    numbers = all(row.key.isdigit() for row in rows)
    if numbers:
        keys = written or tuple(str(i) for i in range(max(int(row.key) for row in rows) + 1))
        place = {str(i): i for i in range(len(keys))}
        names = numbered(tuple(map(plain, written)), asked, len(keys))
    else:
        keys = written or tuple(sorted({row.key for row in rows}))
        place, names = {key: i for i, key in enumerate(keys)}, tuple(map(plain, keys))
    images = Images(tree)
    return Reading("a list of images and classes", keys, names, listed(images, rows, place.get, len(keys)), said=images.beside())


def _own_rows(tree: Tree, name: str, named: str | None, asked: Asked) -> Iterator[Listed]:
    where = storage.name_of(name)
    for number, line in lines(tree, name):
        mark = next((mark for mark in ("\t", ",") if mark in line), None)
        words = next(csv.reader([line], delimiter=mark)) if mark else re.split(r"\s+", line, maxsplit=1)
        if len(words) != 2 or not is_image(words[0].strip()):
            if number == 1 and mark:
                continue  # the names of its columns
            return  # a text of another kind
        if not (split := agreed(f"{tree}: {where}", named, asked) or asked.whole):
            raise UserError(f"{tree}: {where} names no split; say which it is with --split train or --split test")
        yield Listed(f"{where}, line {number}", split, words[0].strip().removeprefix("./"), words[1].strip())
