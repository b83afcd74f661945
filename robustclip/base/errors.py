"""What a user can mend: one line that says what was wrong, where, and what to do."""

import gc
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from robustclip.base import disk
from robustclip.base.stopping import Stopping

# When a command's garbage is collected: by Python's own thresholds, again and again while torch, MLflow and Ray are imported.
SELDOM = (100_000, 50, 50)


class UserError(Exception):
    """A mistake in what was asked or given: one line naming the fault, its place (file, row, key) and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest of `known`, or nothing when none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def main(run: Callable[[], None]) -> None:
    """Run a command: what a user can mend (a UserError, a disk that is full or closed) is one line on stderr and exit status 2.

    Ctrl-C is a line and 130, SIGTERM a line and 143; any other error keeps its traceback.
    """
    stopping, thresholds = Stopping(), gc.get_threshold()
    stopping.listen()
    gc.set_threshold(*SELDOM)
    try:
        run()
        sys.stdout.flush()
    except BaseException as error:
        if stopping.ended(error):
            stopping.end()
        said = str(error) if isinstance(error, UserError) else disk.fault(error)
        if said is None:
            raise
        sys.stderr.write(f"error: {said}\n")
        sys.exit(2)
    finally:
        stopping.working = False
        gc.set_threshold(*thresholds)
