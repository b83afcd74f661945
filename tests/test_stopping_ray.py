"""Ctrl-C while Ray is at work, or comes up, takes all of Ray along: no process is left, and the same command finds what is finished."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_stopping import listening

ROOT = Path(__file__).resolve().parent.parent
SPACE = """'''A question.'''
from ray import tune
RECIPE, METRIC, MODE = "smoke", "val/robust", "max"
SPACE = {"threat.image.eps": tune.grid_search([1.0, 2.0])}
"""
LINE = r"stopped \((SIGINT|SIGTERM)\): what is finished is kept, the same command goes on from there\n"


class Command:
    """A running command, alone in its session, where all that it starts is found."""

    def __init__(self, *words: str):
        env = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
        script = [sys.executable, str(ROOT / "pipelines" / f"{words[0]}.py"), *words[1:]]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(script, env=env, start_new_session=True, preexec_fn=listening, **pipes)  # type: ignore[call-overload]
        self.said = ""

    def listen(self) -> None:
        """Take in what it says within a moment."""
        if select.select([self.process.stderr], [], [], 0.05)[0]:
            self.said += os.read(self.process.stderr.fileno(), 1 << 16).decode()

    def wait_for(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.process.poll() is None, self.said
            self.listen()

    def stop(self, number: signal.Signals) -> int:
        """Send a signal to its whole group, as a terminal does, and return its status."""
        os.killpg(self.process.pid, number)
        self.said += self.process.communicate(timeout=60)[1].decode()
        return self.process.returncode

    def others(self) -> list[psutil.Process]:
        """Return the other living processes of its session."""

        def mine(process: psutil.Process) -> bool:
            try:
                return os.getsid(process.pid) == self.process.pid != process.pid and process.status() != psutil.STATUS_ZOMBIE
            except (ProcessLookupError, psutil.NoSuchProcess):
                return False

        return [process for process in psutil.process_iter() if mine(process)]

    def names(self) -> str:
        """Return the command lines of all of them."""
        others = {process.pid for process in self.others()}
        found = (process.info for process in psutil.process_iter(["pid", "cmdline"]))
        return " ".join(word for each in found if each["pid"] in others for word in each["cmdline"] or ())


def gone_within(command: Command, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while command.others() and time.monotonic() < until:
        time.sleep(0.1)
    return not command.others()


@pytest.fixture
def words(tmp_path: Path, tiny_checkpoint: str) -> dict[str, list[str]]:
    (tmp_path / "space.py").write_text(SPACE)
    run = ["--model", tiny_checkpoint, "--data.name", "shapes", "--optim.epochs", "1000", "--out", str(tmp_path / "out")]
    many = ["--protocol", "smoke", "--attacks", "pgd-10", "apgd-ce-20", "--actors", "2", "--out", str(tmp_path / "out")]
    return {"train": ["smoke", *run], "sweep": [str(tmp_path / "space.py"), *run], "evaluate": [tiny_checkpoint, *many]}


# What is seen when a command is at work: a step of training, the process of a trial in Tune's hands, cells that are being attacked.
AT_WORK: dict[str, Callable[[Command], object]] = {
    "train": lambda command: "step " in command.said,
    "sweep": lambda command: "ImplicitFunc" in command.names(),
    "evaluate": lambda command: "evaluated 0/" in command.said,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", AT_WORK)
def test_ctrl_c_at_work_leaves_no_process(name: str, words: dict[str, list[str]]) -> None:
    command = Command(name, *words[name])
    command.wait_for(lambda: AT_WORK[name](command))
    assert command.others()
    assert command.stop(signal.SIGINT) == 130, command.said
    assert gone_within(command, 10)
    assert re.search(f"(^|\n){LINE}$", command.said), command.said
    assert "Traceback" not in command.said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_ray_comes_up_leaves_no_process(number: signal.Signals, status: int, words: dict[str, list[str]]) -> None:
    command = Command("train", *words["train"])
    command.wait_for(lambda: "gcs_server" in command.names())
    assert command.stop(number) == status, command.said
    assert gone_within(command, 10)
    assert re.search(f"(^|\n){LINE}$", command.said), command.said
