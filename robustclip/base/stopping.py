"""Ctrl-C, SIGTERM and a closed terminal: a command stops within seconds, says one line and leaves none of its processes behind."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 2.0  # seconds for a command to put away what it has begun; Ray's job server kills what it has stopped after three
KEPT = "what is finished is kept, the same command{} goes on from there"


class Stopping:
    """Handles SIGNALS for one command.

    The first raises KeyboardInterrupt where the command is, so that it puts away what it has begun. A second one, one that comes when there
    is nothing left to put away, or GRACE running out ends the process at once.
    """

    def __init__(self) -> None:
        self.number, self.working, self.said, self.ending = 0, True, False, threading.RLock()

    def listen(self) -> None:
        """Handle those of SIGNALS that whoever started this process did not make it ignore (nohup, a shell's background)."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.heard)

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        if self.said:
            return
        repeated, self.number = self.number, self.number or number
        if repeated or not self.working:
            self.end()
        timer = threading.Timer(GRACE, self.end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def ended(self, error: BaseException) -> bool:
        """Return whether a signal ended the work, whatever else went wrong on the way out.

        While Ray comes up SIGTERM is its own, and becomes an exit with the signal's number.
        """
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            self.number = signal.SIGTERM
        return bool(self.number)

    def end(self) -> NoReturn:
        """Say what happened, kill all that this process has started, exit with 128 and the signal's number, as shells count.

        It calls no exit handler: Ray's would wait for what is gone.
        """
        with self.ending:
            if not self.said:
                self.said, fresh = True, " without --fresh" if "--fresh" in sys.argv else ""
                with suppress(OSError):  # of a terminal that is gone
                    os.write(2, f"stopped ({signal.Signals(self.number).name}): {KEPT.format(fresh)}\n".encode())
            kill_descendants()
            os._exit(128 + self.number)


def kill_descendants() -> None:
    """Kill every process that this one has started, parents first: what Ray starts is no group or session of its own."""
    import psutil  # here: what is imported first delays the moment from which on a command listens

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
