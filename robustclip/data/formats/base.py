"""What every reader of a format hands on: items, each an image with its split and label, and the classes in label order."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.archives import Entry, is_image
from robustclip.data.sources import SPLITS, Tree
from robustclip.data.spool import Source

SPLIT_NAMES = SPLITS | {"trainval": "train", "dev": "val"}
NO_SPLIT = "none"  # of what lies in no class folder


@dataclass(frozen=True, slots=True)
class Item:
    """An image that a set says it has: its split, its label (a place in the classes), its name in the split, and the file it is in.

    What is no file of its own, a row of a table, has `made` instead. `fault` says why it can be no row whatever its bytes are.
    """

    split: str
    label: int
    id: str
    entry: Entry | None = None
    made: Source | None = None
    fault: str = ""
    origin: Any = None


@dataclass(frozen=True)
class Reading:
    """What a format makes of sources: classes in label order (`keys` as the source writes them, `names` as a prompt does) and items.

    `filled`: the classes are only what the images say, so one without a readable image is a fault. `shared`: an image may be in several
    splits. `templates` are prompts that the set brings. `said` are sentences for the user.
    """

    format: str
    keys: tuple[str, ...]
    names: tuple[str, ...]
    items: Iterable[Item]
    filled: bool = False
    shared: bool = False
    templates: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What a reader may know besides the files: the split of what names none, class folders to leave out, and the set's usual names.

    `whole` is the split that holds all images of a set without one. `names` are class names in label order of a set whose files have none,
    `formats` what it is tried as first.
    `squash`: every image is scaled to a square of that side, whatever its shape.
    """

    split: str | None = None
    whole: str | None = None
    without: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    squash: int | None = None
    name: str = ""
    formats: tuple[str, ...] = ()


Reader = Callable[[Tree, Asked], Reading | None]


def plain(key: str) -> str:
    """Return a class as a prompt writes it: underscores read as spaces."""
    return key.replace("_", " ").strip()


def lines(tree: Tree, name: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines of a text file that are not empty."""
    for number, line in enumerate(tree.text(name).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def agreed(where: str, named: str | None, asked: Asked) -> str | None:
    """Return the split that names speak of, else the one asked for, if any; raises UserError where they are two."""
    if named and asked.split and asked.split != named:
        said = f"its name, or that of a folder around it, says {named!r}, but --split {asked.split} was given"
        raise UserError(f"{where}: {said}; leave --split out")
    return named or asked.split


def split_of(tree: Tree, name: str, asked: Asked, own: str = "") -> str:
    """Return the split that a name speaks of, as train/0.tar and test-00000-of-00001.parquet do, else the one asked for; or UserError.

    `own` is the end of it that is a sample's own, its name in an archive: there only folders speak, after all that is around the archive
    in the sources. Last speaks the folder that the sources lie in.
    """
    parts = [*reversed(name.removesuffix(own).split("/")), *reversed(own.split("/")[:-1])]
    words = [word for part in parts for word in re.split(r"[-_.]", part.lower())]
    named = next((SPLIT_NAMES[word] for word in (*words, tree.around.lower()) if word in SPLIT_NAMES), None)
    if split := agreed(f"{tree}: {name}", named, asked) or asked.whole:
        return split
    raise UserError(f"{tree}: neither {name} nor a folder around it names a split; say which it is with --split train or --split test")


class Elsewhere(UserError):
    """A list names an image that is not there, while archives that may hold it wait to be opened."""


class Images:
    """The images of a tree by what a list calls them: the last parts of their path, as many as the list gives."""

    def __init__(self, tree: Tree, below: str = "") -> None:
        """Take the images whose path has the folder `below` (a regular expression), or all."""
        wanted = tree.find(rf"(?:{below})/.*", images=True) if below else sorted(tree.files)
        self.tree, self.files, self.used = tree, {name: tree.files[name] for name in wanted}, set[str]()
        self.tails: dict[str, list[str]] = {}
        for name in self.files:
            self.tails.setdefault(storage.name_of(name), []).append(name)

    def find(self, listed: str) -> Entry | None:
        """Return the image that a list means, None where there is none; raises UserError for names that mean two or lead outside."""
        if listed.startswith("/") or ".." in listed.split("/"):
            raise UserError(f"{self.tree}: a list names {listed!r}, which points outside; this source is not to be trusted")
        fits = [name for name in self.tails.get(storage.name_of(listed), ()) if f"/{name}".endswith(f"/{listed}")]
        self.used.update(fits)
        fits = [name for name in fits if not self.files[name].inside] or fits  # what lies unpacked counts, and not its copy
        if len(fits) > 1:
            raise UserError(f"{self.tree}: {listed} may be {fits[0]} or {fits[1]}; give the folder of one of them")
        return self.files[fits[0]] if fits else None

    def beside(self) -> list[str]:
        """Return the sentence that says how many images no list names, none where all are named."""
        left = sorted(name for name in self.files if is_image(name) and name not in self.used)
        return [f"{len(left)} images that no list names are left out, first {left[0]}"] if left else []


@dataclass(frozen=True)
class Listed:
    """A line of a list: where it stands, the split, the image it names, and the key of its class."""

    where: str
    split: str
    image: str
    key: Any


def listed(images: Images, rows: Iterable[Listed], label: Callable[[Any], int | None], classes: int) -> list[Item]:
    """Return the items of a list; what names no image or no class is one with a fault, an image of two classes a UserError.

    Raises Elsewhere for an image that is not there, as long as there are archives to be opened.
    """
    items: list[Item] = []
    before: dict[tuple[str, str], tuple[int, str]] = {}
    for row in rows:
        place = label(row.key)
        fault = ""
        if place is None or not 0 <= place < classes:
            fault, place = f"{row.where}: {row.key!r} is none of the {classes} classes", -1
        key = (row.split, row.image)
        if key in before:
            if before[key][0] != place:
                raise UserError(f"{row.where}: {row.image} is of another class than in {before[key][1]}; mend one of the lines")
            items.append(Item(row.split, place, row.image, fault=f"{row.where}: listed before in {before[key][1]}"))
            continue
        before[key] = (place, row.where)
        entry = images.find(row.image)
        if entry is None and images.tree.packed:
            raise Elsewhere(f"{images.tree}: {row.where} names {row.image}, which is in none of its folders; put it beside the list")
        fault = fault or ("" if entry else f"{row.where} names it, but it is not there")
        items.append(Item(row.split, place, row.image, entry, fault=fault))
    return items


def require(tree: Tree, what: str, found: dict[str, Any]) -> None:
    """Raise UserError where some of the files that say the classes of images are not there (None or empty); `what` are the images."""
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise UserError(f"{tree}: {what}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; put it beside them")


def numbered(names: Sequence[str], asked: Asked, classes: int) -> tuple[str, ...]:
    """Return names for classes that files only number: those the files have, else the set's usual ones, else 'class 0', 'class 1' ..."""
    if names:
        return tuple(names)
    return asked.names if len(asked.names) == classes else tuple(f"class {i}" for i in range(classes))
