"""What sources of a set can look like, a reader for each, and which of them some files are."""

from dataclasses import replace

from robustclip.base.errors import UserError, did_you_mean
from robustclip.data.formats import binaries, folders, imagenet, lists, matlab, pairs, tables
from robustclip.data.formats.base import Asked, Reader, Reading
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
LAST = "folders"
LOOKED_FOR = (
    "class folders ({class}/image or {split}/{class}/image), a list of images and classes (train.txt), webdataset archives (image and "
    ".cls), Parquet of {image, label}, or the files of a set as its authors publish it"
)


def recognised(tree: Tree, asked: Asked, wanted: str | None = None) -> Reading:
    """Return what the sources hold, read as `wanted` or as the one format whose files are there; archives in folders are opened if needed.

    Raises UserError for none, for several, and for one that lacks a file.
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
    if found is None:
        meant = f"what --format {wanted} reads" if wanted else LOOKED_FOR
        raise UserError(f"no readable image in {tree}; expected {meant}; see --help")
    return replace(found, names=written_out(found.keys, found.names, asked, tree))


def _recognised(tree: Tree, asked: Asked, wanted: str | None) -> Reading | None:
    if wanted:
        return FORMATS[wanted](tree, asked)
    found: dict[str, Reading] = {}
    fault: UserError | None = None
    for name, read in FORMATS.items():
        if name == LAST:
            break
        try:
            if reading := read(tree, asked):
                found[name] = reading
        except UserError as error:
            fault = fault or error
    if len(found) > 1:
        raise UserError(f"{tree}: it can be read as {' and as '.join(found)}; say which with --format {next(iter(found))}")
    if found:
        return next(iter(found.values()))
    if fault:
        raise fault
    return FORMATS[LAST](tree, asked)
