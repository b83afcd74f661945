"""A folder that appears whole or not at all: it is made beside its place, hidden, and moved there when it is done."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from robustclip.base import disk, storage
from robustclip.base.errors import UserError


@contextmanager
def staged(folder: str, replace: bool = False, key: str | None = None) -> Iterator[str]:
    """Yield a hidden folder that becomes `folder` when the block ends well and disappears when it does not; a full disk is a UserError.

    A folder already there stays and ours is dropped (two processes made the same thing), unless `replace`. With a `key` of 16 hex digits,
    what was written until the block was broken off (by a signal, a fault, a full disk, no other UserError) is there again for the next
    block of that key, and a block that ends well deletes what is left of all keys.
    """
    stage, kept = f"{_stages(folder)}{key or uuid.uuid4().hex}", False
    try:
        if storage.is_local(folder):
            os.makedirs(stage, exist_ok=key is not None)
        yield stage
        (_move_folder if storage.is_local(folder) else _move_objects)(stage, folder, replace)
        for other in _left_over(folder) if key else ():
            storage.delete(other)
    except BaseException as error:
        kept = key is not None and not (isinstance(error, UserError) and disk.no_room(error) is None)
        if isinstance(error, OSError) and error.errno in disk.NO_ROOM:
            raise UserError(f"{folder}: no room to make it ({error.strerror}); {disk.REMEDY}") from error
        raise
    finally:
        if not kept:
            storage.delete(stage)


def _stages(folder: str) -> str:
    return storage.join(storage.parent_of(folder), f".{storage.name_of(folder)}.")


def _left_over(folder: str) -> list[str]:
    """Return the hidden folders of all keys of a folder."""
    system, inside = storage.filesystem(storage.parent_of(folder))
    names = [info.base_name for info in system.get_file_info(fs.FileSelector(inside, allow_not_found=True))]
    mine = re.compile(re.escape(storage.name_of(_stages(folder))) + r"[0-9a-f]{16}(\.old)?")
    return [storage.join(storage.parent_of(folder), name) for name in names if mine.fullmatch(name)]


def _move_folder(stage: str, folder: str, replace: bool) -> None:
    if replace and storage.exists(folder):
        old = f"{stage}.old"
        os.rename(folder, old)
        os.rename(stage, folder)
        storage.delete(old)
        return
    try:
        os.rename(stage, folder)
    except OSError:
        if not storage.exists(folder):
            raise


def _move_objects(stage: str, folder: str, replace: bool) -> None:
    """Move a folder of an object store file by file, the .json manifests last: who finds one finds all it names."""
    if storage.list_files(folder, ".json") and not replace:
        return
    for path in sorted(storage.list_files(folder), key=lambda p: not p.endswith(".json")):
        storage.delete(path)
    for path in sorted(storage.list_files(stage), key=lambda p: p.endswith(".json")):
        system, inside = storage.filesystem(path)
        system.move(inside, storage.filesystem(storage.join(folder, storage.name_of(path)))[1])
