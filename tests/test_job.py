"""`ray job submit` on a cluster of this machine, as on a real one: stopped and submitted again, it ends with results where it says."""

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from processes import free_port, kill_family

from robustclip.runtime.store import EXPERIMENT, sqlite_uri
from robustclip.runtime.tracking import PARENT_TAG

ROOT = Path(__file__).resolve().parent.parent
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def wait_for(url: str, seconds: float = 120) -> None:
    """Return when a server answers, be it that a token is missing."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} did not answer within {seconds} s")


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], int]]:
    """Start a head node with token authentication, a token and ports of its own; yield its job address, environment and process id."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # short: Ray puts sockets below it
    token = folder / "token"
    token.write_text("a" * 64)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the job's `python` is the head's
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    # HOME is where results go; and Ray's command, which prints a job's lines into a pipe, would keep them until it ends.
    env |= {"HOME": str(tmp_path_factory.mktemp("home")), "PYTHONUNBUFFERED": "1"}
    env.pop("RAY_ADDRESS", None)
    # The agent, which takes jobs, too: another Ray of this machine may hold its default port, and the head would stay up without it.
    port, dashboard, agent = free_port(), free_port(), free_port()
    start = ["start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    settings = ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    process = subprocess.Popen([*RAY, *start, *settings], env=env, cwd=ROOT, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version")  # it answers before the agent has come up
        wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        yield f"http://127.0.0.1:{dashboard}", env, process.pid
    finally:
        kill_family(process.pid)  # a node that is asked to end waits half a minute for its work
        process.wait(timeout=60)


@contextmanager
def frozen_evaluators(head: int) -> Iterator[None]:
    """Freeze every evaluator that a head starts, from its first moment on, so that what a job says is heard before its work is done."""
    ended = threading.Event()

    def freeze() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process(head).children(recursive=True):
                with suppress(psutil.Error):
                    if process.name().startswith("ray::Worker"):
                        process.suspend()

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_sweep_that_is_stopped_and_submitted_again_does_nothing_twice(head: tuple[str, dict[str, str], int], tmp_path: Path) -> None:
    """The bare command, in a head that was started in the project's folder: no option says where the code lies or results go."""
    address, env, pid = head
    space = tmp_path / "one.py"
    space.write_text(
        '"""Does it run as a job?"""\nfrom ray import tune\nRECIPE = "smoke"\n'
        'SPACE = {"threat.image.eps": tune.grid_search([2.0])}\nMETRIC = "val/robust"\nMODE = "max"\n'
    )
    env |= {"RAY_API_SERVER_ADDRESS": address}
    submit = [*RAY, "job", "submit", "--submission-id"]
    command = ["--", "python", "pipelines/sweep.py", str(space), "--protocol", "smoke"]
    out = Path(env["HOME"]) / "robustclip"

    words = [*submit, "first", *command]
    with (
        frozen_evaluators(pid),
        subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first,
    ):
        assert first.stdout is not None
        said = []
        for line in first.stdout:
            said.append(line)
            if "evaluated 0/" in line:  # it has trained
                subprocess.run([*RAY, "job", "stop", "first"], env=env, stdout=subprocess.DEVNULL, check=True)
    status = subprocess.run([*RAY, "job", "status", "first"], env=env, check=True, capture_output=True, text=True, timeout=120)
    assert "was stopped" in status.stdout + status.stderr
    assert "stopped (SIGTERM)" in "".join(said), said
    (result,) = out.glob("runs/*/result.json")
    trained = result.stat().st_mtime_ns

    done = subprocess.run([*submit, "second", *command], env=env, capture_output=True, text=True, timeout=2200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert str(out) in done.stdout
    assert "\r" not in done.stdout + done.stderr  # no bars: one line an event
    assert result.stat().st_mtime_ns == trained
    client = MlflowClient(sqlite_uri(str(out / "mlflow.db")))
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert len(runs) == 2
    assert sum(PARENT_TAG in run.data.tags for run in runs) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert list(out.glob("reports/*/report.html"))
