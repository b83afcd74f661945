"""Class folders, {class}/image or {split}/{class}/image below any folders that are around them all."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from robustclip.base.errors import UserError
from robustclip.data.archives import is_image
from robustclip.data.formats.base import NO_SPLIT, Asked, Item, Reading, agreed, plain
from robustclip.data.sources import SPLITS, Root, Tree, stem_of

NAME = "class folders"
# Folders that hold images of all classes, so that one alone with such a name is no class.
NO_CLASS = {"image", "images", "img", "imgs", "jpg", "jpeg", "png", "data", "dataset", "pictures", "photos", "frames", "all", *SPLITS}
NUMBER_FIRST = re.compile(r"\d{3}\.(.+)")  # Caltech256's 001.ak47, CUB's 001.Black_footed_Albatross


@dataclass(frozen=True)
class Place:
    """Where a name says an image belongs; `split` is None where only a class folder is named, `wrapper` are folders around it all."""

    split: str | None
    class_folder: str
    file: str
    wrapper: str = ""


def place(name: str) -> Place | None:
    """Return the place a file's name says, None for hidden files and files beside the class folders; other layouts are a UserError."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(parts) < 2 or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    *outer, class_folder, file = parts
    split = SPLITS.get(outer[-1].lower()) if outer else None
    around = outer[:-1] if split else outer
    if any(part.lower() in SPLITS for part in around):
        raise UserError(f"{name}: lies too deep; expected {{class}}/image or {{split}}/{{class}}/image, split one of {', '.join(SPLITS)}")
    return Place(split, class_folder, file, "/".join(around))


def class_names(class_folders: set[str]) -> dict[str, str]:
    """Return class folder -> class name: underscores read as spaces, letters composed (NFC), a number before every name cut.

    Two folders whose names differ otherwise and yet mean one class are a UserError.
    """
    composed = {folder: unicodedata.normalize("NFC", folder) for folder in sorted(class_folders)}
    numbers = [NUMBER_FIRST.fullmatch(name) for name in composed.values()]
    cut = dict(zip(composed, (found.group(1) for found in numbers if found))) if all(numbers) else composed
    names = {folder: plain(name) for folder, name in cut.items()}
    by_name: dict[str, str] = {}
    for folder, name in names.items():
        other = by_name.setdefault(name, folder)
        if composed[other] != composed[folder]:
            raise UserError(f"the class folders {other!r} and {folder!r} both mean the class {name!r}; rename one")
    return names


def read(tree: Tree, asked: Asked) -> Reading | None:
    """Return the classes and images of class folders; raises UserError where folders cannot be classes."""
    _check_classes(tree)
    items = [item for number, root in enumerate(tree.roots) for item in _items(number, root, asked)]
    folders = {item.origin[2] for item in items if item.split != NO_SPLIT}
    if not any(is_image(item.id) for item in items):
        return None
    if not folders:
        return Reading(NAME, (), (), items)
    names = class_names(folders)
    numbers = all(re.fullmatch(r"\d+", folder) for folder in folders)  # ImageNet-V2's 0 to 999
    by_number = NUMBER_FIRST.fullmatch(next(iter(folders)))
    firsts: dict[str, str] = {}
    for folder in sorted(folders, key=(lambda folder: (int(folder), folder)) if numbers else None):
        firsts.setdefault(names[folder], folder)
    order = tuple(firsts) if numbers or by_number else tuple(sorted(firsts))
    label = {name: i for i, name in enumerate(order)}
    labelled = (item if item.split == NO_SPLIT else _with_label(item, label[names[item.origin[2]]]) for item in items)
    said = [f"left out by the set's protocols: {', '.join(asked.without)}"] if asked.without and _left_out(tree, asked) else []
    return Reading(NAME, tuple(firsts[name] for name in order), order, labelled, filled=True, said=said)


def _check_classes(tree: Tree) -> None:
    """Raise UserError where all images lie in one folder that is named after what images are, and not after a class."""
    folders = {name.split("/")[-2] for name in tree.files if is_image(name) and "/" in name}
    if len(folders) == 1 and (only := folders.pop()).lower() in NO_CLASS:
        raise UserError(
            f"{tree}: the folder {only!r} holds images without classes: a set that keeps its labels in other files needs these too "
            "(see --help), any other a folder for each class"
        )


def _left_out(tree: Tree, asked: Asked) -> bool:
    return any(part in asked.without for name in tree.files for part in name.split("/")[:-1])


def _with_label(item: Item, label: int) -> Item:
    return Item(item.split, label, item.id, item.entry, fault=item.fault, origin=item.origin)


def _items(number: int, root: Root, asked: Asked) -> Iterator[Item]:
    folders, filled, wrappers = set(), set(), set()
    for entry in root.entries:
        is_folder = entry.open is None and not entry.fault
        if set(entry.name.split("/")) & {*asked.without}:
            continue
        where = place(f"{entry.name}/-" if is_folder else entry.name)
        if is_folder:
            folders |= {entry.name} if where else set()
            continue
        if where is None or (entry.fault and not is_image(entry.name)):  # a dead link may have been a folder
            if item := _passed_by(entry.name, entry.fault):
                yield item
            continue
        filled |= {entry.name.rsplit("/", depth)[0] for depth in range(1, entry.name.count("/") + 1)}
        wrappers.add(where.wrapper)
        _check_wrapper(root.source, wrappers)
        split = _split_of(where, root, asked)
        yield Item(
            split, -1, f"{where.class_folder}/{where.file}", entry, fault=entry.fault, origin=(number, entry.name, where.class_folder)
        )
    for folder in sorted(folders - filled):
        raise UserError(f"{root.source}: the folder {folder!r} is empty; remove it or fill it with images")


def _check_wrapper(source: str, wrappers: set[str]) -> None:
    if len(wrappers) > 1:
        first, second = sorted(wrappers)[:2]
        beside = f"beside {first!r}" if first else "beside class folders"
        raise UserError(
            f"{source}: the folder {second!r} {beside} is no split ({', '.join(SPLITS)}) and not around all; see --help for layouts"
        )


def _split_of(where: Place, root: Root, asked: Asked) -> str:
    stem = stem_of(root.source).split(".")[0].lower()
    split = agreed(f"{root.source}: {where.class_folder}/{where.file}", where.split, asked) or SPLITS.get(stem) or asked.whole
    if split is None:
        raise UserError(
            f"{root.source}: its folders name no split ({', '.join(SPLITS)}) for {where.class_folder}/{where.file}; "
            "say which it is with --split train or --split test"
        )
    return split


def _passed_by(name: str, fault: str) -> Item | None:
    """Return what may be an image but lies in no class folder; what macOS adds to archives (._*, __MACOSX) and other files are none."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    if "__MACOSX" in name or "/._" in f"/{name}" or not (fault or is_image(name)):
        return None
    return Item(NO_SPLIT, -1, name, fault=fault or ("hidden" if hidden else "lies in no class folder"))
