"""What a user can mend: one line that says what was wrong, where, and what to do."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what was asked or given: one line naming the fault, its place (file, row, key) and the remedy."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest of `known`, or nothing when none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def main(run: Callable[[], None]) -> None:
    """Run a pipeline: a UserError becomes one line on stderr and exit status 2, Ctrl-C becomes 130; any other error keeps its traceback."""
    try:
        run()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
