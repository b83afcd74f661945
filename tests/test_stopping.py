"""A command that is told to stop does so within seconds, with one line, the shell's status, and none of its processes left."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from robustclip import __main__
from robustclip.base import errors, stopping

ROOT = Path(__file__).resolve().parent.parent
COMMAND = """
import atexit, signal, subprocess, sys, threading
from robustclip.base import errors
from robustclip.base.staging import staged

def wait(what):
    print(what, flush=True)
    threading.Event().wait()

def run():
    null = subprocess.DEVNULL  # a pipe that they held would keep who reads it waiting for a command that failed
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"], start_new_session=True, stdout=null, stderr=null)
    if "{when}" == "taken":  # as by Ray, while it comes up
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    if "{when}" == "after":
        return
    try:
        with staged("{folder}/made"):
            wait("at work")
    finally:
        if "{when}" == "stuck":
            wait("putting away")

atexit.register(lambda: wait("at work") if "{when}" == "after" else None)
errors.main(run)
"""
IMPORTING = """
import os, runpy, signal, sys, time

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "robustclip.commands.{name}":
            assert not {{"torch", "ray", "mlflow"}} & set(sys.modules)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

sys.meta_path.insert(0, Stop())
sys.argv = ["{name}", "--help"]
runpy.run_path({script!r}, run_name="__main__")
"""


def listening() -> None:
    """Ignore no signal in a child, as its terminal would see to: who runs these tests in a shell's background ignores SIGINT."""
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def running(when: str, folder: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a command that makes a folder and has a child and a grandchild, and wait until it is at work."""
    options.setdefault("preexec_fn", listening)
    words = [sys.executable, "-c", COMMAND.format(when=when, folder=folder), *(["--fresh"] if when == "fresh" else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "at work\n"
        try:
            yield process
        finally:
            process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return what a command has started, once all of it is there."""
    while len(found := psutil.Process(process.pid).children(recursive=True)) < 3:
        time.sleep(0.02)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    left = psutil.wait_procs(processes, timeout=10)[1]  # zombies, where nobody reaps orphans
    return all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in left)


@pytest.mark.parametrize(
    ("when", "name", "status"),
    [
        ("working", "SIGINT", 130),
        pytest.param("working", "SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("working", "SIGHUP", 129, marks=pytest.mark.slow),
        ("fresh", "SIGINT", 130),
        pytest.param("stuck", "SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("after", "SIGINT", 130, marks=pytest.mark.slow),
    ],
)
def test_one_line_a_status_and_no_process_left(when: str, name: str, status: int, tmp_path: Path) -> None:
    with running(when, tmp_path) as process:
        started = family(process)
        process.send_signal(signal.Signals[name])
        said = process.communicate(timeout=30)[1]
        assert process.returncode == status
        assert gone(started)
    fresh = " without --fresh" if when == "fresh" else ""
    assert said == f"stopped ({name}): what is finished is kept, the same command{fresh} goes on from there\n"
    assert os.listdir(tmp_path) == [], "what was begun is put away"


def test_a_signal_that_another_took_meanwhile_is_a_stop(tmp_path: Path) -> None:
    with running("taken", tmp_path) as process:
        started = family(process)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
        assert (process.returncode, said.startswith("stopped (SIGTERM): "), said.count("\n")) == (143, True, 1)
        assert gone(started)


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    with running("stuck", tmp_path) as process:
        started = family(process)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "putting away\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1].count("\n") == 1
        assert process.returncode == 130
        assert gone(started)


def test_what_was_started_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    with running("working", tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1].startswith("stopped (SIGTERM)")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_a_script_can_be_stopped_before_it_has_imported_its_command(name: str) -> None:
    script = str(ROOT / "pipelines" / f"{name}.py")
    words = [sys.executable, "-c", IMPORTING.format(name=name, script=script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, preexec_fn=listening)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr


def test_a_command_collects_garbage_seldom_and_leaves_its_caller_as_he_was() -> None:
    before, within = gc.get_threshold(), []
    errors.main(lambda: within.append(gc.get_threshold()))
    assert within == [errors.SELDOM] != [before]
    assert gc.get_threshold() == before
