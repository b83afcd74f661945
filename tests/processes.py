"""Processes that a test has started, with all that they have started."""

from contextlib import suppress

import psutil


def kill_family(pid: int) -> None:
    """Send SIGKILL to a process and to everything that it has started, and wait until all are gone."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=10)
