"""What sources of a set can look like, a reader for each, and which of them some files are."""

from dataclasses import replace

from robustclip.base.errors import UserError, did_you_mean
from robustclip.data.formats import binaries, folders, imagenet, lists, matlab, pairs, tables
from robustclip.data.formats.base import Asked, Elsewhere, Reader, Reading
from robustclip.data.naming import written_out
from robustclip.data.sources import Tree

# Every one but the last looks for files that only it has.
FORMATS: dict[str, Reader] = {
    "coop": lists.coop,
    "dtd": lists.textures,
    "food101": lists.food,
    "aircraft": lists.aircraft,
    "pets": lists.pets,
    "sun397": lists.scenes,
    "flowers102": matlab.flowers,
    "cars": matlab.cars,
    "imagenet-val": imagenet.validation,
    "tiny-imagenet": imagenet.tiny,
    "cifar": binaries.cifar_python,
    "cifar-binary": binaries.cifar_binary,
    "stl10": binaries.stl,
    "pcam": binaries.camelyon,
    "hateful-memes": tables.memes,
    "parquet": tables.parquet,
    "webdataset": pairs.read,
    "list": lists.own,
    "folders": folders.read,
}
UNLESS_OTHERS = ("list", "folders")  # in this order, where nothing else fits: what others read may look like these
LOOKED_FOR = (
    "class folders ({class}/image or {split}/{class}/image), a list of images and classes (train.txt), webdataset archives (image and "
    ".cls), Parquet of {image, label}, or the files of a set as its authors publish it"
)


def recognised(tree: Tree, asked: Asked, wanted: str | None = None) -> Reading:
    """Return what the sources hold, read as `wanted`, as the first format of a known set that fits, or as the one whose files are there.

    Archives in folders are opened if nothing fits without, or what fits lacks images. Raises UserError for none, for several, and for one
    that lacks a file.
    """
    if wanted is not None and wanted not in FORMATS:
        raise UserError(f"no format {wanted!r}{did_you_mean(wanted, FORMATS)}; there are {', '.join(FORMATS)}")
    try:
        found = _recognised(tree, asked, wanted)
    except UserError:
        if not tree.packed:
            raise
        found = None
    if found is None and tree.packed:
        found = _recognised(tree.opened(), asked, wanted)
    elif found is not None and tree.packed:
        found.said.append("archives that lie beside these files are not looked into")
    if found is None:
        meant = f"what --format {wanted} reads ({_looks_for(wanted)})" if wanted else LOOKED_FOR
        raise UserError(f"no readable image in {tree}; expected {meant}; see --help")
    return replace(found, names=written_out(found.keys, found.names, asked, tree))


def _looks_for(name: str) -> str:
    """Return what a reader looks for, which the first sentence of its docstring says."""
    return (FORMATS[name].__doc__ or "").splitlines()[0].removeprefix("Read ").rstrip(".")


def _recognised(tree: Tree, asked: Asked, wanted: str | None) -> Reading | None:
    if wanted:
        return FORMATS[wanted](tree, asked)
    faults: list[UserError] = []
    for name in asked.formats:
        if reading := _tried(name, tree, asked, faults):
            return reading
    found = {name: reading for name in FORMATS if name not in UNLESS_OTHERS and (reading := _tried(name, tree, asked, faults))}
    if len(found) > 1:
        raise UserError(f"{tree}: it can be read as {' and as '.join(found)}; say which with --format {next(iter(found))}")
    for reading in found.values():
        return reading
    if faults:
        raise faults[0]
    for name in UNLESS_OTHERS:
        if reading := FORMATS[name](tree, asked):
            return reading
    return None


def _tried(name: str, tree: Tree, asked: Asked, faults: list[UserError]) -> Reading | None:
    try:
        return FORMATS[name](tree, asked)
    except Elsewhere:
        raise  # it is the right one, and no other is to take its files for something else
    except UserError as error:
        faults.append(error)
        return None
