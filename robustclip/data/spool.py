"""Bytes that wait: one temporary file into which files are put and from which each can be read at any time by its place."""

import io
import os
from collections.abc import Callable
from functools import partial
from typing import IO, Any, Protocol

PIECE = 1 << 20


class Readable(Protocol):
    """Anything that gives its bytes piece by piece."""

    def read(self, size: int = ..., /) -> bytes:
        """Return the next bytes, none at the end."""


class Slice(io.RawIOBase):
    """Part of an open file as a file of its own; several may read one file at once, for each keeps its own place."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self.descriptor, self.start, self.length, self.at = descriptor, start, length, 0

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
        data = os.pread(self.descriptor, max(0, min(len(buffer), self.length - self.at)), self.start + self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class Spool:
    """A temporary file that takes whatever is put into it and hands each piece back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def keep(self, data: bytes | Readable) -> Callable[[], IO[bytes]]:
        """Put bytes, or all that a stream holds, behind the rest; return what opens them again."""
        start = self.stream.seek(0, os.SEEK_END)
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        length = 0
        while piece := source.read(PIECE):
            length += self.stream.write(piece)
        return partial(self._open, start, length)

    def _open(self, start: int, length: int) -> IO[bytes]:
        self.stream.flush()
        return io.BufferedReader(Slice(self.stream.fileno(), start, length), 1 << 16)
