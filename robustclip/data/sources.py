"""What lies in a folder or a tar archive of class folders, {class}/image or {split}/{class}/image; archives are never unpacked to disk."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.archives import DEAD_LINK, NO_FILE, SUFFIXES, Entry, tar_entries
from robustclip.data.images import BadImage

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}


def entries(source: str) -> Iterator[Entry]:
    """Yield all files and folders of a source, a local folder or a tar archive (local or in an object store)."""
    if storage.is_local(source) and os.path.isdir(source):
        return _folder_entries(source)
    if source.lower().endswith(SUFFIXES):
        return tar_entries(source)
    if not storage.exists(source):
        raise UserError(f"{source}: no such folder or file; give a folder, a tar archive of class folders, or world:SET")
    raise UserError(f"{source}: neither a local folder nor a tar archive ({', '.join(SUFFIXES)})")


def _folder_entries(source: str) -> Iterator[Entry]:
    for folder, folders, files in os.walk(source, onerror=_closed, followlinks=True):  # sets made of links are common
        inside = os.path.relpath(folder, source).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        if prefix:
            yield Entry(inside)
        circles = {name for name in folders if _leads_around(source, os.path.join(folder, name))}
        folders[:] = sorted({*folders} - circles)
        for name in sorted({*files} | circles):
            yield Entry(prefix + name, fault=DEAD_LINK) if name in circles else _file(os.path.join(folder, name), prefix + name)


def _closed(error: OSError) -> None:
    raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror}); give yourself the right to, or leave it out")


def _leads_around(source: str, path: str) -> bool:
    """Return whether a folder is a link to one that it lies in, so that walking it would never end."""
    if not os.path.islink(path):
        return False
    end, around = os.path.join(os.path.realpath(path), ""), path
    while around != source:
        around = os.path.dirname(around)
        if os.path.join(os.path.realpath(around), "").startswith(end):
            return True
    return False


def _file(path: str, name: str) -> Entry:
    try:
        status = os.stat(path)
    except OSError as error:
        return Entry(name, fault=DEAD_LINK if os.path.islink(path) else f"cannot be read ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return Entry(name, fault=NO_FILE)
    return Entry(name, status.st_size, partial(_bytes, path))


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Place:
    """Where a name says an image belongs; `split` is None where only a class folder is named, `wrapper` is a folder around it all."""

    split: str | None
    class_folder: str
    file: str
    wrapper: str = ""


def place(name: str) -> Place | None:
    """Return the place a file's name says, None for hidden files and files beside the class folders; other layouts are a UserError."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise UserError(f"the name {name!r} points outside its source; this archive is not to be trusted")
    if len(parts) < 2 or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    *outer, class_folder, file = parts
    split = SPLITS.get(outer[-1].lower()) if outer else None
    wrapper = "/".join(outer[:-1] if split else outer)
    if "/" in wrapper:
        raise UserError(f"{name}: lies too deep; expected {{class}}/image or {{split}}/{{class}}/image, split one of {', '.join(SPLITS)}")
    return Place(split, class_folder, file, wrapper)
