"""ImageNet's flat validation images with one of the files that say their classes, and Tiny-ImageNet."""

import re
from collections.abc import Iterator

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.archives import is_image
from robustclip.data.formats.base import Asked, Images, Item, Listed, Reading, lines, listed, require
from robustclip.data.formats.matlab import column, variables
from robustclip.data.sources import Tree

FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
WNID = re.compile(r"n\d{8}")
TRUTHS = (
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt with the devkit's meta.mat",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
)


def validation(tree: Tree, asked: Asked) -> Reading | None:
    """Read ImageNet with flat validation images; training images are folders, or archives, called by their wnid (n01440764)."""
    flat = sorted(name for name in tree.files if FLAT.fullmatch(storage.name_of(name)) and not WNID.fullmatch(name.split("/")[-2:][0]))
    if not flat:
        return None
    truth = _truth(tree)
    if truth is None:
        raise UserError(f"{tree}: validation images of ImageNet, but what says their classes is missing: one of {'; '.join(TRUTHS)}")
    where, wnids = truth
    keys = tuple(
        sorted(
            {wnid for wnid in wnids.values() if WNID.fullmatch(wnid)}
            | {name.split("/")[-2] for name in tree.find(r"n\d{8}/[^/]+", images=True)}
        )
    )
    place = {key: i for i, key in enumerate(keys)}
    images = Images(tree)
    rows = (Listed(f"{where}, {name}", "val", f"{name}.JPEG", wnid) for name, wnid in wnids.items())
    items = listed(images, rows, place.get, len(keys))
    for name, entry in images.files.items():
        parts = name.split("/")
        if len(parts) > 1 and WNID.fullmatch(parts[-2]) and is_image(name):
            images.used.add(name)
            split = "val" if "val" in parts[:-2] else "train"
            items.append(Item(split, place[parts[-2]], "/".join(parts[-2:]), entry, fault=entry.fault))
    return Reading("ImageNet with flat validation images", keys, keys, items, said=images.beside())


def _truth(tree: Tree) -> tuple[str, dict[str, str]] | None:
    """Return where the classes of the validation images stand, and image -> wnid."""
    if name := tree.only(r"LOC_val_solution\.csv"):
        rows = [line.partition(",") for _, line in lines(tree, name)][1:]
        return "LOC_val_solution.csv", {image: (text.split() or [""])[0] for image, _, text in rows}
    if name := tree.only(r"imagenet_2012_validation_synset_labels\.txt"):
        return storage.name_of(name), {f"ILSVRC2012_val_{i:08d}": line for i, (_, line) in enumerate(lines(tree, name), 1)}
    if name := tree.only(r"ILSVRC2012_validation_ground_truth\.txt"):
        meta = tree.only(r"meta\.mat")
        require(tree, "ILSVRC2012_validation_ground_truth.txt, whose numbers are ILSVRC's own", {"the devkit's data/meta.mat": meta})
        synsets = column(tree, meta or "", variables(tree, meta or ""), "synsets")
        wnids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
        numbers = [int(line) for _, line in lines(tree, name)]
        return storage.name_of(name), {f"ILSVRC2012_val_{i:08d}": wnids.get(number, str(number)) for i, number in enumerate(numbers, 1)}
    if name := tree.only(r"val\.txt"):
        from robustclip.data.naming import wnids as ordered

        known = {str(i): wnid for i, wnid in enumerate(ordered())}
        pairs = [line.rpartition(" ") for _, line in lines(tree, name)]
        return "val.txt", {image.strip().rpartition(".")[0]: known.get(number, number) for image, _, number in pairs}
    return None


def tiny(tree: Tree, asked: Asked) -> Reading | None:
    """Read Tiny-ImageNet: train/WNID/images/, val/images/ with val_annotations.txt, names from words.txt; test/ has no labels."""
    notes = tree.only(r"val_annotations\.txt")
    nested = tree.find(r"train/n\d{8}/images/[^/]+", images=True)
    if not (notes or nested):
        return None
    require(tree, "images of Tiny-ImageNet", {"train/WNID/images/": nested, "val/val_annotations.txt": notes})
    keys = tuple(sorted({name.split("/")[-3] for name in nested}))
    place = {key: i for i, key in enumerate(keys)}
    items = [
        Item("train", place[name.split("/")[-3]], "/".join(name.split("/")[-3::2]), tree.files[name], fault=tree.files[name].fault)
        for name in nested
        if is_image(name)
    ]
    images = Images(tree, "val/images")
    items += listed(images, _notes(tree, notes or ""), place.get, len(keys))
    left = tree.find(r"test/images/[^/]+", images=True)
    said = images.beside() + ([f"{len(left)} test images without labels are left out"] if left else [])
    return Reading("Tiny-ImageNet", keys, keys, items, said=said)


def _notes(tree: Tree, name: str) -> Iterator[Listed]:
    for number, line in lines(tree, name):
        words = line.split()
        yield Listed(f"val_annotations.txt, line {number}", "val", words[0], words[1] if len(words) > 1 else "")
