"""Sets whose labels are in MATLAB files: Oxford Flowers 102 and Stanford Cars."""

import io
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.formats.base import Asked, Images, Listed, Reading, listed, numbered, require
from robustclip.data.sources import Tree

FLOWER = r"image_\d{5}\.jpg"
CAR_LABELS = {"train": r"cars_train_annos\.mat", "test": r"cars_test_annos_withlabels\.mat"}


def variables(tree: Tree, name: str) -> dict[str, Any]:
    """Return the variables of a MATLAB file; one that cannot be read is a UserError."""
    from scipy.io import loadmat

    data = io.BytesIO(tree.content(name))
    try:
        return loadmat(data, squeeze_me=True)
    except Exception as error:  # scipy raises what its parts raise on damaged bytes: ValueError, TypeError, zlib.error, NotImplementedError
        raise UserError(f"{tree}: {name} is no readable MATLAB file ({error}); fetch it again".replace("\n", " ")) from error


def column(tree: Tree, name: str, facts: dict[str, Any], key: str) -> Any:
    """Return a variable of a MATLAB file as an array of one dimension; a missing one is a UserError."""
    import numpy as np

    if key not in facts:
        raise UserError(f"{tree}: {name} has no {key!r}; fetch it again")
    return np.atleast_1d(facts[key])


def flowers(tree: Tree, asked: Asked) -> Reading | None:
    """Read Flowers 102: imagelabels.mat has the class of image_00001.jpg, ..., setid.mat the images of trnid, valid and tstid."""
    labels_file, splits_file = tree.only(r"imagelabels\.mat"), tree.only(r"setid\.mat")
    there = tree.find(FLOWER, images=True)
    if not (labels_file or splits_file or (there and all(name.split("/")[-2:-1] == ["jpg"] for name in there))):
        return None
    require(tree, "images of Oxford Flowers 102", {"imagelabels.mat": labels_file, "setid.mat": splits_file, "jpg/image_00001.jpg": there})
    if labels_file is None or splits_file is None:
        return None
    labels = column(tree, labels_file, variables(tree, labels_file), "labels")
    splits = variables(tree, splits_file)
    rows = [
        Listed(
            f"setid.mat, {key}", split, f"image_{int(number):05d}.jpg", int(labels[number - 1]) - 1 if 0 < number <= len(labels) else None
        )
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        for number in column(tree, splits_file, splits, key)
    ]
    classes = len(asked.names) or int(max(labels))
    images = Images(tree)
    names = numbered((), asked, classes)
    return Reading("Flowers 102's MATLAB labels", names, names, listed(images, rows, lambda key: key, classes), said=images.beside())


def cars(tree: Tree, asked: Asked) -> Reading | None:
    """Read Stanford Cars: cars_meta.mat names the classes, cars_train_annos.mat and cars_test_annos_withlabels.mat (class, fname)."""
    meta, found = tree.only(r"cars_meta\.mat"), {split: tree.only(pattern) for split, pattern in CAR_LABELS.items()}
    folders = [folder for folder in ("cars_train", "cars_test") if tree.find(rf"{folder}/\d{{5}}\.jpg", images=True)]
    if not (meta or any(found.values()) or folders):
        return None
    wanted = {split: found[split] for split in found if f"cars_{split}" in folders or not folders}
    files = {"cars_train_annos.mat": wanted.get("train", "-"), "cars_test_annos_withlabels.mat": wanted.get("test", "-")}
    require(tree, "files of Stanford Cars", {"cars_meta.mat": meta, "cars_train/ or cars_test/": folders} | files)
    if meta is None:
        return None
    keys = tuple(str(name) for name in column(tree, meta, variables(tree, meta), "class_names"))
    items, said = [], []
    for split, name in wanted.items():
        if name is None:
            continue
        images = Images(tree, f"cars_{split}")
        notes = column(tree, name, variables(tree, name), "annotations")
        if not {"class", "fname"} <= {*(notes.dtype.names or ())}:
            raise UserError(f"{tree}: {name} has no class and fname of each image; the test labels are in cars_test_annos_withlabels.mat")
        rows = [
            Listed(f"{storage.name_of(name)}, row {i}", split, str(note["fname"]), int(note["class"]) - 1) for i, note in enumerate(notes)
        ]
        items += listed(images, rows, lambda key: key, len(keys))
        said += images.beside()
    return Reading("Stanford Cars' devkit", keys, keys, items, said=said)
