"""One process at a time: what two commands may make first is made by one of them, and the other waits and finds it."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from robustclip.base import storage
from robustclip.base.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def alone(path: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a path that need not exist yet, `waiting` called if another process or thread has it.

    The kernel gives it back when its holder ends, be it by SIGKILL. An object store and a file system without locks have none: there two
    processes may do the same work, and the last of them to write the same bytes counts. Raises UserError for a folder not to be written.
    """
    if not storage.is_local(path):
        yield
        return
    lock = storage.join(storage.parent_of(path), f".{storage.name_of(path)}.lock")
    descriptor = _taken(lock, waiting)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock)
        os.close(descriptor)


def _taken(lock: str, waiting: Callable[[], None]) -> int:
    """Return the descriptor of a lock's file that is there: a holder deletes it in the end, and who waited for that one starts again."""
    while True:
        try:
            os.makedirs(os.path.dirname(lock), exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            folder = os.path.dirname(lock)
            raise UserError(f"{folder}: cannot be written ({error.strerror}); mend that or give another folder with --out") from error
        try:
            _wait(descriptor, waiting)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(descriptor: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("no locks here: %s", error)
