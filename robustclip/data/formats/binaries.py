"""Sets whose images are rows of pixels in a few large files: CIFAR-10 and CIFAR-100 (Python and binary version), STL-10, PatchCamelyon."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.formats.base import Asked, Item, Reading, lines, numbered, plain, require
from robustclip.data.formats.unpickling import unpickled
from robustclip.data.sources import Tree
from robustclip.data.spool import Place

STL_SIDE, CIFAR_SIDE = 96, 32


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 [H,W,3] as a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image as a PNG, made of its pixels, uint8 of some shape [H,W,3], which lie somewhere."""

    place: Place
    shape: tuple[int, ...]

    def read(self) -> bytes:
        """Return the PNG."""
        return png(np.frombuffer(self.place.read(), np.uint8).reshape(self.shape))


def _rows(tree: Tree, split: str, name: str, pixels: np.ndarray, labels: Any, classes: int, first: int = 0) -> Iterator[Item]:
    """Yield an item for every image of uint8 [n,H,W,3], put into the spool; labels that are none are faults of theirs."""
    if len(pixels) != len(labels):
        raise UserError(f"{name}: {len(pixels)} images and {len(labels)} labels; fetch the set again")
    for i, label in enumerate(labels):
        fault = "" if 0 <= int(label) < classes else f"{name}, row {i}: label {int(label)} is none of the {classes} classes"
        made = Pixels(tree.spool.keep(pixels[i].tobytes()), pixels[i].shape)
        yield Item(split, int(label), f"{first + i:06d}", made=made, fault=fault)


def cifar_python(tree: Tree, asked: Asked) -> Reading | None:
    """Read CIFAR's Python version: pickles data_batch_1 to 5 and test_batch, or train and test, with the names in batches.meta or meta."""
    ten = tree.find(r"data_batch_[1-5]")
    if not ten and [storage.name_of(name) for name in tree.find("meta|train|test")] != ["meta", "test", "train"]:
        return None
    name = tree.only(r"batches\.meta") if ten else tree.only("meta")
    test = tree.only("test_batch" if ten else "test")
    train = ten or tree.find("train")
    key = b"labels" if ten else b"fine_labels"
    require(tree, "batches of CIFAR", {"batches.meta": name, "test_batch": test})
    facts = unpickled(f"{tree}: {name}", tree.open(name or ""))
    written = facts.get(b"label_names" if ten else b"fine_label_names") if isinstance(facts, dict) else None
    if not isinstance(written, list):
        raise UserError(f"{tree}: {name} has no names of classes; fetch the set again")
    keys = tuple(bytes(each).decode() for each in written)
    if ten and len(ten) < 5:
        raise UserError(f"{tree}: {len(ten)} of the five files data_batch_1 to data_batch_5; fetch the others")

    def items() -> Iterator[Item]:
        for split, names in (("train", train), ("test", [test] if test else [])):
            first = 0
            for each in names:
                where = f"{tree}: {each}"
                batch = unpickled(where, tree.open(each))
                if not isinstance(batch, dict) or not {b"data", key} <= {*batch}:
                    raise UserError(f"{where} has no data and {key.decode()}; fetch the set again")
                pixels = _planes(where, np.asarray(batch[b"data"], np.uint8))
                yield from _rows(tree, split, where, pixels, batch[key], len(keys), first)
                first += len(pixels)

    return Reading("CIFAR's Python version", keys, tuple(map(plain, keys)), items())


def _planes(where: str, data: np.ndarray) -> np.ndarray:
    """Return rows of three planes, uint8 [n,3072], as [n,32,32,3]."""
    if data.ndim != 2 or data.shape[1] != 3 * CIFAR_SIDE**2:
        raise UserError(f"{where}: rows of {data.shape[1:]} bytes are no images of 32 x 32 pixels; fetch the set again")
    return data.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)


def cifar_binary(tree: Tree, asked: Asked) -> Reading | None:
    """Read CIFAR's binary version: data_batch_1.bin ... and test_batch.bin, or train.bin and test.bin, whose rows begin with the label."""
    ten, hundred = tree.find(r"data_batch_[1-5]\.bin"), tree.only(r"fine_label_names\.txt")
    if not (ten or hundred):
        return None
    names = tree.only(r"batches\.meta\.txt") if ten else hundred
    test = tree.only(r"test_batch\.bin") if ten else tree.only(r"test\.bin")
    train = ten or [each for each in [tree.only(r"train\.bin")] if each]
    files = {"batches.meta.txt": names, "test_batch.bin" if ten else "test.bin": test, "train.bin": train}
    require(tree, "files of CIFAR's binary version", files)
    if ten and len(ten) < 5:
        raise UserError(f"{tree}: {len(ten)} of the five files data_batch_1.bin to data_batch_5.bin; fetch the others")
    keys = tuple(line for _, line in lines(tree, names or ""))
    head = 1 if ten else 2  # CIFAR-100 has the coarse label before the fine one

    def items() -> Iterator[Item]:
        for split, parts in (("train", train), ("test", [test] if test else [])):
            first = 0
            for each in parts:
                data, width = np.frombuffer(tree.content(each), np.uint8), head + 3 * CIFAR_SIDE**2
                if len(data) % width:
                    raise UserError(f"{tree}: {each}: {len(data)} bytes are no rows of {width}; fetch the set again")
                rows = data.reshape(-1, width)
                yield from _rows(tree, split, f"{tree}: {each}", _planes(each, rows[:, head:]), rows[:, head - 1], len(keys), first)
                first += len(rows)

    return Reading("CIFAR's binary version", keys, tuple(map(plain, keys)), items())


def stl(tree: Tree, asked: Asked) -> Reading | None:
    """Read STL-10: train_X.bin and train_y.bin, test_X.bin and test_y.bin, class_names.txt; its unlabelled images are left out."""
    found = {split: (tree.only(rf"{split}_X\.bin"), tree.only(rf"{split}_y\.bin")) for split in ("train", "test")}
    if not any(pixels for pixels, _ in found.values()):
        return None
    names = tree.only(r"class_names\.txt")
    labels = {f"{split}_y.bin": labels for split, (pixels, labels) in found.items() if pixels}
    require(tree, "images of STL-10", {"class_names.txt": names} | labels)
    keys = tuple(line for _, line in lines(tree, names or ""))

    def items() -> Iterator[Item]:
        size = 3 * STL_SIDE**2
        for split, (pixels, labels) in found.items():
            if not pixels or not labels:
                continue
            entry, numbers = tree.files[pixels], np.frombuffer(tree.content(labels), np.uint8).astype(int) - 1
            if entry.size != len(numbers) * size:
                raise UserError(f"{tree}: {pixels}: {entry.size} bytes are not {len(numbers)} images of 96 x 96 pixels; fetch it again")
            with tree.open(pixels) as stream:
                for i, label in enumerate(numbers):
                    planes = np.frombuffer(stream.read(size), np.uint8).reshape(1, 3, STL_SIDE, STL_SIDE)
                    yield from _rows(tree, split, f"{tree}: {pixels}", planes.transpose(0, 3, 2, 1), [label], len(keys), i)

    said = ["unlabelled images are left out"] if tree.find(r"unlabeled_X\.bin") else []
    return Reading("STL-10's binary files", keys, tuple(map(plain, keys)), items(), said=said)


def _unpacked(tree: Tree, name: str) -> IO[bytes]:
    """Return a file opened, one packed by gzip through the temporary file: HDF5 is read here and there."""
    if not name.endswith(".gz"):
        return tree.open(name)
    with tree.open(name) as packed, gzip.open(packed) as stream:
        return tree.spool.keep(stream)()


def camelyon(tree: Tree, asked: Asked) -> Reading | None:
    """Read PatchCamelyon: camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5 or .h5.gz, by h5py (the extra pcam)."""
    pattern = re.compile(r"camelyonpatch_level_2_split_(train|valid|test)_(x|y)\.h5(?:\.gz)?")
    found: dict[tuple[str, str], str] = {}
    for name in tree.find(pattern.pattern):
        if fits := pattern.fullmatch(storage.name_of(name)):
            found[fits.group(1), fits.group(2)] = name
    if not found:
        return None
    splits = [split for split in ("train", "valid", "test") if any(part == split for part, _ in found)]
    files = {f"camelyonpatch_level_2_split_{split}_{axis}.h5": found.get((split, axis)) for split in splits for axis in "xy"}
    require(tree, "files of PatchCamelyon", files)
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{tree}: its .h5 files are read by h5py, which is not there; install robustclip[pcam]") from error

    def items() -> Iterator[Item]:
        for split in splits:
            where = f"{tree}: {found[split, 'x']}"
            try:
                with (
                    _unpacked(tree, found[split, "x"]) as x,
                    _unpacked(tree, found[split, "y"]) as y,
                    h5py.File(x, "r") as images,
                    h5py.File(y, "r") as labels,
                ):
                    pixels, numbers = images["x"], np.asarray(labels["y"]).reshape(-1)
                    if len(pixels) != len(numbers):
                        raise UserError(f"{where}: {len(pixels)} images and {len(numbers)} labels; fetch the set again")
                    for start in range(0, len(pixels), 256):
                        part = numbers[start : start + 256]
                        yield from _rows(tree, {"valid": "val"}.get(split, split), where, pixels[start : start + 256], part, 2, start)
            except (OSError, KeyError, EOFError, zlib.error) as error:
                raise UserError(f"{where}: no readable file of PatchCamelyon ({error}); fetch it again".replace("\n", " ")) from error

    names = numbered((), asked, 2)
    return Reading("PatchCamelyon's HDF5", names, names, items())
