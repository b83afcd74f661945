"""Where bytes lie and can be read again, by any process and at any time: in a file, in a part of one, or put into the spool for that."""

import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from robustclip.base import storage

PIECE = 1 << 20


class Readable(Protocol):
    """Anything that gives its bytes piece by piece."""

    def read(self, size: int = ..., /) -> bytes:
        """Return the next bytes, none at the end."""


class Source(Protocol):
    """What gives the same bytes whenever it is asked, here or in another process: small, and known by its repr."""

    def read(self) -> bytes:
        """Return all bytes; raises OSError where they cannot be read."""


class Slice(io.RawIOBase):
    """Part of an open file as a file of its own, which closes that file with itself."""

    def __init__(self, stream: Any, start: int, length: int) -> None:
        self.stream, self.start, self.length, self.at = stream, start, length, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be read anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, counted from its start, from where it is, or from its end."""
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next and return how many bytes that were."""
        wanted = min(len(buffer), self.length - self.at)
        if wanted <= 0:
            return 0
        self.stream.seek(self.start + self.at)
        data = self.stream.read(wanted)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file that it is a part of."""
        if not self.closed:
            self.stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a file, local or of an object store: all of them, or `length` from `start` on. Called, it opens them."""

    path: str
    start: int = 0
    length: int | None = None

    def __call__(self) -> IO[bytes]:
        """Return the bytes as an open file."""
        if self.length is not None:
            buffered = io.DEFAULT_BUFFER_SIZE if storage.is_local(self.path) else PIECE  # each reading of an object store is a request
            return io.BufferedReader(Slice(self._file(0), self.start, self.length), buffered)
        return self._file()

    def read(self) -> bytes:
        """Return the bytes; raises OSError where they cannot be read, or are fewer than they were."""
        with self._file(0) as stream:
            stream.seek(self.start)
            data = stream.read() if self.length is None else stream.read(self.length)
        if self.length is not None and len(data) != self.length:
            raise OSError(errno.EIO, "it was cut short", self.path)
        return data

    def part(self, start: int, length: int) -> "Place":
        """Return a part of it."""
        return Place(self.path, self.start + start, length)

    def _file(self, buffering: int = -1) -> Any:
        if storage.is_local(self.path):
            return open(self.path, "rb", buffering=buffering)
        system, inside = storage.filesystem(self.path)
        return system.open_input_file(inside)


class Spool:
    """A file of its own that takes whatever is put into it and says where each piece lies; it is gone when its block ends."""

    def __init__(self, path: str) -> None:
        self.path, self.stream = path, open(path, "wb")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close and delete it."""
        self.stream.close()
        Path(self.path).unlink(missing_ok=True)

    @property
    def empty(self) -> bool:
        """Return whether nothing was put into it."""
        return self.stream.tell() == 0

    def keep(self, data: bytes | Readable) -> Place:
        """Put bytes, or all that a stream holds, behind the rest; return where they can be read from now on."""
        start = self.stream.tell()
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        length = 0
        while piece := source.read(PIECE):
            length += self.stream.write(piece)
        self.stream.flush()
        return Place(self.path, start, length)
