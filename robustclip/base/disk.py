"""What a disk may refuse, seen through all that others wrap around it: no room, no permission, a file where a folder should be."""

import errno
import os
from collections.abc import Iterator

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WAY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
# How it reads where only words are left: of an error that was raised in another process, by Arrow, or by SQLite.
FULL = (*map(os.strerror, NO_ROOM), "database or disk is full")
REMEDY = "make some and run the same command again"


def no_room(error: BaseException) -> str | None:
    """Return what to say where an error comes from a full disk (or quota, or limit of a file's size), else None."""
    for each in behind(error):
        if isinstance(each, OSError) and each.errno in NO_ROOM and each.filename:
            return f"{each.filename}: no room to write it ({each.strerror}); {REMEDY}"
    for each in behind(error):
        for line in reversed(str(each).splitlines()):
            if any(words in line for words in FULL):
                return f"no room to write the results ({' '.join(line.split())[:300]}); {REMEDY}"
    return None


def fault(error: BaseException) -> str | None:
    """Return what to say where an error is a refusal of the disk that the user can mend, else None."""
    for each in behind(error):
        if isinstance(each, OSError) and each.errno in NO_WAY and each.filename:
            return f"{each.filename}: {each.strerror}; make that possible, or choose another place (--out, --to)"
    return no_room(error)


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, of Ray's the one of the other process too, outermost first."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and all(each is not other for other in seen):
            seen.append(each)
            yield each
            waiting += [getattr(each, "cause", None), each.__cause__, each.__context__]
