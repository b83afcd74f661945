"""What classes are called: files of names and templates, ImageNet's wnids written out, the names of suites, published and mended."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError

WNID = re.compile(r"n\d{8}")
VARIANTS = ("clean", "reference")
BY_LEMMA = ("tecoa", "mmcoa")  # suites whose name begins so were published with the first words of ImageNet's synsets
FEW = 10  # of ImageNet's 1000 synsets
# What CLIP_benchmark calls the sets whose class names it carries.
IN_CLIP_BENCHMARK = {
    "imagenet": "imagenet1k",
    "flowers102": "flowers",
    "caltech101": "caltech101_vtab",
    "oxfordpets": "pets",
    "eurosat": "eurosat",
    "pcam": "pcam",
    "country211": "country211",
}


@cache
def wnids() -> tuple[str, ...]:
    """Return ImageNet's 1000 wnids in label order, from timm."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


@cache
def first_lemmas() -> dict[str, str]:
    """Return wnid -> the first word of its synset, from timm: "crane" and "maillot" twice, "Cardigan" a dog and "cardigan" a garment."""
    from timm.data import ImageNetInfo

    return {wnid: lemmas.split(",")[0] for wnid, lemmas in ImageNetInfo().label_descriptions(as_dict=True).items()}


@cache
def imagenet_names(variant: str = "clean") -> dict[str, str]:
    """Return wnid -> name as CLIP's authors chose it, from open_clip; `clean` tells the four apart that two pairs share."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    names = dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True))
    twice = {name for name, times in Counter(names.values()).items() if times > 1}
    if variant == "clean":
        names |= {wnid: first_lemmas()[wnid] for wnid, name in names.items() if name in twice}
    return names


def written_out(keys: Sequence[str], names: Sequence[str], asked: Any, tree: Any) -> tuple[str, ...]:
    """Return names for classes that are called by wnid (of ImageNet, or by words.txt, LOC_synset_mapping.txt) or as `as_wnids` knows."""
    if keys and all(WNID.fullmatch(key) for key in keys):
        known = imagenet_names()
        known = {key: known[key] for key in keys if key in known} if {*keys} <= known.keys() else _words(tree)
        if missing := [key for key in keys if key not in known]:
            raise UserError(
                f"{tree}: no name for {missing[0]}, one of {len(missing)} wnids that are none of ImageNet's 1000; "
                "put the set's words.txt beside it, or give --class-names"
            )
        return tuple(known[key] for key in keys)
    return tuple(imagenet_names()[key] for key in as_wnids(asked.name, keys)) or tuple(names)


def as_wnids(name: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the wnids that the classes of a set called after ImageNet mean, none where they mean others.

    They are wnids, all its labels, 0 to 999, or all its synsets in their order, "tench, Tinca tinca": by their first words, but for a few
    that may be told apart otherwise than timm does.
    """
    if not name.startswith("imagenet"):
        return ()
    if all(WNID.fullmatch(key) for key in keys):
        return tuple(keys)
    known = first_lemmas()
    if len(keys) != len(known):
        return ()
    alike = sum(key.split(",")[0] == lemma for key, lemma in zip(keys, known.values()))
    return tuple(known) if alike >= len(known) - FEW or tuple(keys) == tuple(map(str, range(len(keys)))) else ()


def _words(tree: Any) -> dict[str, str]:
    name = tree.only(r"words\.txt") or tree.only(r"LOC_synset_mapping\.txt")
    rows = (re.split(r"\s+", line.strip(), maxsplit=1) for line in tree.text(name).splitlines()) if name else ()
    return {row[0]: row[1].split(",")[0] for row in rows if len(row) == 2}


def names_file(path: str) -> list[str] | dict[str, str]:
    """Return class names from a file: one a line in label order, a JSON list, or a JSON object {folder or name in the set: name}."""
    value = _lines_or_json(path)
    if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each.strip() for each in value):
        raise UserError(f"{path}: no class names; write one a line, a JSON list of them, or a JSON object {{folder: name}}")
    return value


def templates_file(path: str) -> list[str]:
    """Return templates from a file: one a line, or a JSON list; {c} of CLIP_benchmark reads as {}."""
    value = _lines_or_json(path)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise UserError(f"{path}: no templates; write one a line with {{}} where the class name goes, or a JSON list of them")
    return [each.replace("{c}", "{}") for each in value]


def _lines_or_json(path: str) -> Any:
    where = storage.resolve(path)
    if not storage.exists(where):
        raise UserError(f"{path}: no such file")
    if path.lower().endswith(".json"):
        return storage.read_json(where)
    try:
        text = storage.read_bytes(where).decode("utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path}: no text in UTF-8 ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def renamed(keys: Sequence[str], names: Sequence[str], wanted: Sequence[str] | Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return the names of classes after a list or mapping; raises UserError for another number of names or a class that is not there."""
    if isinstance(wanted, Mapping):
        known = {**dict(zip(names, names)), **dict(zip(keys, names))}
        if unknown := [key for key in wanted if key not in known]:
            raise UserError(f"{where}: {unknown[0]!r} is no class of the set; its classes are {', '.join(keys[:5])} ...")
        return tuple(wanted.get(key, wanted.get(name, name)) for key, name in zip(keys, names))
    if len(wanted) != len(names):
        raise UserError(
            f"{where}: {len(wanted)} names for {len(names)} classes, in the order {', '.join(names[:3])} ...; give one for each"
        )
    return tuple(wanted)


@cache
def clip_benchmark(name: str) -> tuple[str, ...]:
    """Return a set's class names in label order from the package clip-benchmark (MIT), an extra; none where it is not there."""
    from importlib.util import find_spec

    spec = find_spec("clip_benchmark")
    if spec is None or not spec.origin:
        return ()
    table = json.loads((Path(spec.origin).parent / "datasets" / "en_classnames.json").read_text())
    return tuple(table.get(IN_CLIP_BENCHMARK.get(name, ""), ()))


def mao(suite: str, name: str, keys: Sequence[str], names: Sequence[str], variant: str) -> tuple[str, ...]:
    """Return a set's names by the rules of TeCoA's published code, which its successors took over; `clean` keeps them apart.

    Published: lower case, '_' and '-' as spaces, cars without their year, both kinds of faces 'person' (MMCoA: as their folders), 'Boeing'
    before 7...
    """
    if name == "stanfordcars":
        return tuple(names) if variant == "clean" else tuple(each[:-5].lower().replace("_", " ").replace("-", " ") for each in names)
    if name == "fgvcaircraft":
        return tuple(f"Boeing {each}" if each.startswith("7") else each for each in names)
    if name == "sun397" and variant == "reference":
        names = [key.partition("/")[2] or key for key in keys]  # apartment_building/outdoor; clean puts it the other way round
    if name == "caltech101" and not (suite.startswith("mmcoa") and variant == "reference"):
        faces = (
            {"Faces": "person", "Faces_easy": "person"} if variant == "reference" else {"Faces": "off-center face", "Faces_easy": "face"}
        )
        names = [faces.get(key, each) for key, each in zip(keys, names)]
    if name == "caltech256":
        names = [each.removesuffix("-101") for each in names]
    if name.startswith("imagenet"):
        return tuple(names)
    return tuple(map(refined, names))


def refined(name: str) -> str:
    """Return a name as TeCoA's published code writes it: lower case, '_', '/' and '-' as spaces."""
    return re.sub(r"[_/-]", " ", name).lower()


def suite_names(suite: str, name: str, keys: Sequence[str], names: Sequence[str], variant: str) -> tuple[str, ...]:
    """Return what a suite calls the classes of a set: `reference` as published, with double and odd names, or `clean`.

    FARE-13's names, and those of countries that are folders of two letters, come from clip-benchmark; without it FARE-13 takes those that
    the set's own files give, and countries without names are a UserError.
    """
    if known := as_wnids(name, keys):
        by_lemma = variant == "reference" and suite.startswith(BY_LEMMA)
        published = {key: refined(lemma) for key, lemma in first_lemmas().items()} if by_lemma else imagenet_names(variant)
        return tuple(published.get(key, each) for key, each in zip(known, names))
    codes = name == "country211" and all(re.fullmatch("[A-Z]{2}", key) for key in keys)
    if codes or (suite.startswith("fare") and name in IN_CLIP_BENCHMARK):
        listed = clip_benchmark(name)
        if codes and not listed:
            raise UserError("countries are called by two letters; their names are in clip-benchmark: install robustclip[clip-benchmark]")
        if len(listed) == len(names):
            return listed if variant == "reference" else tuple(" ".join(each.split()) for each in listed)
        if codes:
            raise UserError(f"{len(names)} countries where Country211 has {len(listed)}; fetch the others, or give --class-names")
    if suite.startswith(("fare", "tapt")) or codes:
        return tuple(names)
    return mao(suite, name, keys, names, variant)
