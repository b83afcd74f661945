"""The hidden folder in which a set is made: its pieces of work, what they came to, and the shards that are finished."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import PIL
import pyarrow as pa

from robustclip.base import storage
from robustclip.base.staging import staged
from robustclip.base.values import key
from robustclip.data.card import CARD, DatasetCard
from robustclip.data.collecting import checked
from robustclip.data.pieces import Ledger, Mapper
from robustclip.data.shards import ROW_GROUP, ROWS_PER_FILE, Row, files_of, write_file
from robustclip.data.sources import Progress, fingerprint
from robustclip.data.spool import Source, Spool

SKIPPED = "skipped.json"
WORK = ".work"  # the folder inside an unfinished set that holds what its pieces came to
LIBRARIES = (pa.__version__, PIL.__version__, ROW_GROUP, ROWS_PER_FILE)  # what besides sources and options decides the bytes of shards


@dataclass(frozen=True)
class Stage:
    """A set that is being made in `folder` of sources at some places."""

    folder: str
    places: Sequence[str]
    spool: Spool
    mapper: Mapper
    progress: Progress

    def check(self, pieces: Sequence[tuple[Source, ...]]) -> Iterator[list[Any]]:
        """Yield what `checked` says of every piece."""
        return self._done(checked, pieces)

    def write(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, tuple[dict, ...]]:
        """Write the files of all splits and return split -> {file, sha256, rows} of each."""
        files = {split: files_of(self.folder, split, images) for split, images in rows.items()}
        pieces = [piece for parts in files.values() for piece in parts]
        shards, seen = [], 0
        for shard in self._done(written, pieces, self._there):
            shards.append({name: shard[name] for name in ("file", "sha256", "rows")})
            seen += shard["rows"]
            self.progress(seen, "written")
        coming = iter(shards)
        return {split: tuple(next(coming) for _ in parts) for split, parts in files.items()}

    def tidy(self, card: DatasetCard) -> None:
        """Delete from a local stage all that is no part of the set: what pieces came to, parts of files that a killed process wrote."""
        self.spool.close()  # a network file system keeps what is open
        wanted = {CARD, SKIPPED, *(shard["file"] for shards in card.shards.values() for shard in shards)}
        for name in {*os.listdir(self.folder)} - wanted if storage.is_local(self.folder) else ():
            storage.delete(storage.join(self.folder, name))

    def _done(self, work: Callable[[Any], Any], pieces: Sequence[Any], *valid: Callable[[Any], bool]) -> Iterator[Any]:
        """Yield what pieces come to; other machines may do them if they see all that is read and written."""
        anywhere = self.spool.empty and not any(map(storage.is_local, (self.folder, *self.places)))
        return Ledger(storage.join(self.folder, WORK), self.mapper).done(work, pieces, anywhere, *valid)

    def _there(self, shard: Any) -> bool:
        """Return whether a shard that was written lies there still, of the same size."""
        return storage.sizes([storage.join(self.folder, shard["file"])]) == [shard["bytes"]]


def written(piece: tuple[str, Sequence[Row]]) -> dict[str, Any]:
    """Write a file of a split and return {file, sha256, rows, bytes} of it."""
    path, rows = piece
    return write_file(path, rows) | {"bytes": storage.size_of(path)}


@contextmanager
def stage_of(folder: str, places: Sequence[str], options: Any, replace: bool, mapper: Mapper, progress: Progress) -> Iterator[Stage]:
    """Yield the stage of the set that becomes `folder`, as `staged` does; what was left of it is there for the same files and options."""
    decides = [options, *LIBRARIES]
    identity = key(places, [fingerprint(place, decides) for place in places])
    with staged(folder, replace, identity) as stage, _spool(stage) as spool:
        yield Stage(stage, places, spool, mapper, progress)


@contextmanager
def _spool(stage: str) -> Iterator[Spool]:
    """Yield the spool, beside the shards where these are local: a temporary folder in memory could not hold a large set."""
    with ExitStack() as held:
        if storage.is_local(stage):
            folder = storage.join(stage, WORK)
            os.makedirs(folder, exist_ok=True)
        else:
            folder = held.enter_context(tempfile.TemporaryDirectory())
        yield held.enter_context(Spool(storage.join(folder, "spool")))
