"""`ray job submit` on a cluster of this machine, as on a real one: the job succeeds and its results are where it says."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Start a head node with token authentication, a token of its own, and ports of its own; yield its job address and environment."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())  # short: Ray puts sockets below it
    token = folder / "token"
    token.write_text("a" * 64)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the job's `python` is the head's
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    env.pop("RAY_ADDRESS", None)
    # The agent, which takes jobs, too: another Ray of this machine may hold its default port, and the head would stay up without it.
    port, dashboard, agent = free_port(), free_port(), free_port()
    start = ["start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    settings = ["--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    process = subprocess.Popen([*RAY, *start, *settings], env=env, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version")  # it answers before the agent has come up
        wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        yield f"http://127.0.0.1:{dashboard}", env
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_submitted_sweep_succeeds(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    space = tmp_path / "one.py"
    space.write_text(
        '"""Does it run as a job?"""\nfrom ray import tune\nRECIPE = "smoke"\n'
        'SPACE = {"threat.image.eps": tune.grid_search([2.0])}\nMETRIC = "val/robust"\nMODE = "max"\n'
    )
    command = ["python", "pipelines/sweep.py", str(space), "--protocol", "smoke", "--out", str(tmp_path / "out")]
    submit = [*RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", *command]
    done = subprocess.run(submit, env=env, capture_output=True, text=True, timeout=2200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert (tmp_path / "out" / "mlflow.db").is_file()
    assert list((tmp_path / "out" / "reports").glob("*/report.html"))
