"""Work in pieces: by as many processes as there are and in any order, each piece once: what a stopped command did is found again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from robustclip.base import storage
from robustclip.base.values import key


class Mapper(Protocol):
    """How pieces of work are done: one after the other, or many at a time."""

    def __call__(self, work: Callable[[Any], Any], pieces: Sequence[Any], anywhere: bool) -> Iterable[Any]:
        """Yield what `work` returns of every piece, in any order; `anywhere`: all that it reads and writes, any machine can see."""


def one_by_one(work: Callable[[Any], Any], pieces: Sequence[Any], anywhere: bool) -> Iterable[Any]:
    """Yield what `work` returns of every piece: the mapper that needs nothing."""
    return map(work, pieces)


@dataclass(frozen=True)
class Ledger:
    """Does pieces of work by a mapper and keeps in a folder what each came to, by its name and the hash of the piece."""

    folder: str
    mapper: Mapper

    def done(
        self,
        work: Callable[[Any], Any],
        pieces: Sequence[Any],
        anywhere: bool,
        valid: Callable[[Any], bool] = lambda result: True,
    ) -> Iterator[Any]:
        """Yield what `work`, a function that can be pickled, returns of every piece, in their order and as JSON values.

        A piece is what its repr says. What is kept of one is taken if it is `valid`; its result is yielded and the piece not done again.
        """
        paths = [storage.join(self.folder, f"{work.__name__}-{key(repr(piece))}.json") for piece in pieces]
        kept = {*storage.list_files(self.folder, ".json")}.intersection(paths)
        there = {path for path in kept if valid(storage.read_json(path))}
        missing = [(i, piece) for i, piece in enumerate(pieces) if paths[i] not in there]
        coming = iter(self.mapper(partial(_numbered, work), missing, anywhere))
        waiting: dict[int, Any] = {}
        for i, path in enumerate(paths):
            while path not in there and i not in waiting:
                number, waiting[number] = _next(coming)
                storage.write_json(paths[number], waiting[number])
            yield storage.read_json(path) if path in there else waiting.pop(i)


def _numbered(work: Callable[[Any], Any], piece: tuple[int, Any]) -> tuple[int, Any]:
    return piece[0], work(piece[1])


def _next(coming: Iterator[tuple[int, Any]]) -> tuple[int, Any]:
    for found in coming:
        return found
    raise RuntimeError("a piece of work was lost: the mapper ended without it")
