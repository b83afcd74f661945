"""One small door to files: a local path or a file://, s3://, gs:// URI, through pyarrow.fs; every write is all or nothing."""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from robustclip.base import disk
from robustclip.base.errors import UserError

OBJECT_STORES = ("s3", "gs")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SETTLED = 10 * 10**9  # ns: what changed later ago may change again and show the same time, which is rounded, in places to two seconds


def resolve(path_or_uri: str) -> str:
    """Return an absolute local path or an object-store URI without a trailing slash; an unknown scheme is a UserError."""
    scheme = path_or_uri.split("://", 1)[0] if "://" in path_or_uri else ""
    if scheme in OBJECT_STORES:
        if not urlsplit(path_or_uri).netloc:
            raise UserError(f"{path_or_uri}: names no bucket; write {scheme}://bucket/folder")
        return path_or_uri.rstrip("/")
    if scheme == "file":
        return os.path.abspath(unquote(urlsplit(path_or_uri).path))
    if scheme:
        raise UserError(f"{path_or_uri}: {scheme}:// is not supported; use a local path, file://, s3:// or gs://")
    return os.path.abspath(os.path.expanduser(path_or_uri))


def is_local(path: str) -> bool:
    """Return whether a resolved path lies on this machine's file system."""
    return "://" not in path


def safe_name(name: str) -> str:
    """Return a name that came from data if it may be a part of a path, else raise a UserError."""
    if not SAFE_NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a file name; use letters, digits, '.', '_' and '-', starting with a letter or digit")
    return name


def join(folder: str, *parts: str) -> str:
    """Return folder/part/part for a path or a URI."""
    return "/".join((folder.rstrip("/"), *parts))


def name_of(path: str) -> str:
    """Return the last part of a path or URI."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def parent_of(path: str) -> str:
    """Return a path or URI without its last part."""
    return path.rstrip("/").rsplit("/", 1)[0]


@cache
def _object_store(root: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(root)[0]  # cached: asking a bucket for its region is a slow call


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of a resolved path and the path inside it."""
    if is_local(path):
        return fs.LocalFileSystem(), path
    scheme, inside = path.split("://", 1)
    return _object_store(f"{scheme}://{inside.split('/', 1)[0]}"), inside


def _type(path: str) -> fs.FileType:
    system, inside = filesystem(path)
    return system.get_file_info(inside).type


def exists(path: str) -> bool:
    """Return whether a file or folder is there."""
    return _type(path) != fs.FileType.NotFound


def sizes(paths: Sequence[str]) -> list[int]:
    """Return the bytes of files of one file system, 0 for one that is not there; an object store is asked once."""
    if not paths:
        return []
    inside = [filesystem(path)[1] for path in paths]
    return [info.size or 0 for info in filesystem(paths[0])[0].get_file_info(inside)]


def open_read(path: str) -> BinaryIO:
    """Return an open stream of a file's bytes; the caller closes it."""
    system, inside = filesystem(path)
    return system.open_input_stream(inside, compression=None)


def read_bytes(path: str) -> bytes:
    """Return a file's bytes; a missing file is a FileNotFoundError."""
    with open_read(path) as stream:
        return stream.read()


def writable(folder: str) -> str:
    """Return a resolved folder, there or not yet, if files can be written into it; else raise UserError: before the work, not after it."""
    if not is_local(folder):
        probe = join(folder, f".{uuid.uuid4().hex}.tmp")  # what a store permits only trying shows
        try:
            write_bytes(probe, b"")
            delete(probe)
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: cannot be written to ({said}); get the permission or choose another place") from error
        return folder
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise UserError(f"{folder}: {there} is no folder; move it away or choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        why = "its disk is read-only" if os.statvfs(there).f_flag & os.ST_RDONLY else "no permission"
        raise UserError(f"{folder}: {there} cannot be written to ({why}); change that or choose another place")
    return folder


@contextmanager
def writing(path: str) -> Iterator[Any]:
    """Yield a stream that becomes `path` when the block ends well and leaves nothing when it does not; a full disk is a UserError."""
    system, inside = filesystem(path)
    if not is_local(path):  # an object appears when its stream is closed
        try:
            with system.open_output_stream(inside, compression=None) as stream:
                yield stream
        except BaseException:
            delete(path)
            raise
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = os.path.join(os.path.dirname(path), f".{name_of(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "xb") as stream:
            yield stream
        os.replace(partial, path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in disk.NO_ROOM:
            raise UserError(f"{path}: no room to write it ({error.strerror}); {disk.REMEDY}") from error
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Write a file in one step: a reader sees the old bytes or the new ones, never a part."""
    with writing(path) as stream:
        stream.write(data)


def read_json(path: str) -> Any:
    """Return the value of a JSON file; text that is no JSON is a UserError naming the file."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore or delete the file") from error


def write_json(path: str, value: Any) -> None:
    """Write a value as JSON in one canonical form: sorted keys, indented, a newline at the end, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file, or some of its columns, as an Arrow table."""
    system, inside = filesystem(path)
    with system.open_input_file(inside) as stream:
        return pq.ParquetFile(stream).read(columns=None if columns is None else list(columns))


def write_table(path: str, table: pa.Table) -> None:
    """Write an Arrow table as one Parquet file in one step."""
    with writing(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def _children(folder: str, kind: fs.FileType) -> list[str]:
    system, inside = filesystem(folder)
    found = system.get_file_info(fs.FileSelector(inside, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == kind and not info.base_name.startswith("."))


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Return the sorted paths of the visible files of a folder (not below it) that end in `suffix`; none for a missing folder."""
    return [join(folder, name) for name in _children(folder, fs.FileType.File) if name.endswith(suffix)]


def list_folders(folder: str) -> list[str]:
    """Return the sorted names of the visible folders of a folder; none for a missing one."""
    return _children(folder, fs.FileType.Directory)


def is_folder(path: str) -> bool:
    """Return whether a folder is there."""
    return _type(path) == fs.FileType.Directory


def size_of(path: str) -> int:
    """Return a file's size in bytes."""
    system, inside = filesystem(path)
    return system.get_file_info(inside).size


def stamp(path: str) -> tuple[int, int]:
    """Return a file's size in bytes and time of change in ns."""
    system, inside = filesystem(path)
    info = system.get_file_info(inside)
    return info.size, info.mtime_ns


def list_all(folder: str) -> list[tuple[str, int, int]]:
    """Return (name inside the folder, size in bytes, time of change in ns) of every file in and below a folder, sorted."""
    system, inside = filesystem(folder)
    found = system.get_file_info(fs.FileSelector(inside, recursive=True))
    start = len(inside.rstrip("/")) + 1
    return sorted((info.path[start:], info.size, info.mtime_ns) for info in found if info.type == fs.FileType.File)


def delete(path: str) -> None:
    """Delete a file or a whole folder; a missing one is fine."""
    system, inside = filesystem(path)
    kind = _type(path)
    if kind == fs.FileType.Directory:
        shutil.rmtree(path, ignore_errors=True) if is_local(path) else system.delete_dir(inside)
    elif kind != fs.FileType.NotFound:
        system.delete_file(inside)


def sha256_file(path: str) -> str:
    """Return the hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open_read(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def known_sha256(path: str) -> str:
    """Return the hex SHA-256 of a file's bytes, which a process reads once as long as the file's size and time of change stay."""
    size, changed = stamp(path)
    return _known_sha256(path, size, changed) if changed and time.time_ns() - changed > SETTLED else sha256_file(path)


@cache
def _known_sha256(path: str, size: int, changed: int) -> str:
    return sha256_file(path)
