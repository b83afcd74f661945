"""Processes that tests start: a port for one, and an end of one with all that it has started."""

import socket
from contextlib import suppress

import psutil


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def kill_family(pid: int) -> None:
    """Send SIGKILL to a process and to everything that it has started, and wait until all are gone."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=10)
