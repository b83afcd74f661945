"""One process at a time: what two commands may make first is made by one of them, and the other waits and finds it."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from robustclip.base import storage
from robustclip.base.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def alone(path: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a path that need not exist yet, `waiting` called once if another process or thread has it.

    The kernel gives it back when its holder ends, be it by SIGKILL. An object store and a file system without locks have none: there two
    processes may do the same work, and the last of them to write the same bytes counts. Raises UserError for a folder not to be written.
    """
    if not storage.is_local(path):
        yield
        return
    folder = storage.parent_of(path)
    try:
        os.makedirs(folder, exist_ok=True)
        # Never deleted: who waits for a deleted file and who makes it anew would both hold a lock.
        descriptor = os.open(os.path.join(folder, f".{storage.name_of(path)}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); mend that or give another folder with --out") from error
    try:
        _take(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("no locks here: %s", error)
