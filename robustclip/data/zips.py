"""The members of a zip archive, each kept once: names, sizes and checksums are checked, and what would swell beyond reason is refused."""

import posixpath
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

from robustclip.base import disk
from robustclip.base.errors import UserError
from robustclip.data.archives import MAX_BYTES, NO_FILE, Entry, is_image, never_kept
from robustclip.data.spool import Spool

SUFFIX = ".zip"
SWELLS = 200  # times its own size: images hardly shrink, and nothing that a data set holds shrinks so far
FREE = 1 << 30  # bytes that any archive may hold, however small it is
LOCKED = "it is locked with a password"


def zip_entries(source: str, packed: Callable[[], IO[bytes]], spool: Spool) -> Iterator[Entry]:
    """Yield the files and folders of a zip archive, its files kept in `spool`; `source` is what errors call it, `packed` opens it."""
    with packed() as stream:
        length = stream.seek(0, 2)
        stream.seek(0)
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, OSError, ValueError, IndexError, NotImplementedError) as error:
            raise _damaged(source, error) from error
        members = archive.infolist()
        if (total := sum(member.file_size for member in members)) > max(FREE, SWELLS * length):
            raise UserError(f"{source}: {length} bytes would become {total}; this archive is not to be trusted")
        for member in members:
            yield _entry(source, archive, member, spool)


def _damaged(source: str, error: BaseException) -> UserError:
    return UserError(f"{source}: the archive is damaged or cut short ({error}); fetch it again")


def _entry(source: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, spool: Spool) -> Entry:
    name = member.filename.replace("\\", "/")  # as some programs on Windows write it
    name = "/" * name.startswith("/") + posixpath.normpath(name.strip("/")) if ".." not in name.split("/") else name
    mode = member.external_attr >> 16
    if member.is_dir():
        return Entry(name)
    if member.flag_bits & 1:
        return Entry(name, fault=LOCKED)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Entry(name, fault="a link in a zip archive" if stat.S_ISLNK(mode) else NO_FILE)
    if member.file_size > MAX_BYTES and is_image(name):
        return Entry(name, member.file_size, partial(never_kept, name))
    try:
        with archive.open(member) as stream:
            return Entry(name, member.file_size, spool.keep(stream))
    except OSError as error:
        if error.errno in disk.NO_ROOM:
            raise
        raise _damaged(source, error) from error
    except (zipfile.BadZipFile, EOFError, zlib.error, ValueError, NotImplementedError, RuntimeError) as error:
        raise _damaged(source, error) from error
