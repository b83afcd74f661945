"""Commands killed at any moment of their start, many that write at once, and a server that dies: nothing is lost, nothing doubled."""

import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from processes import free_port, kill_family

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.runtime import store, tracking
from robustclip.runtime.logged import located

STARTS, LONGEST = 20, 3.0  # LONGEST: seconds of a start before it is killed
ASKED = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
TRAIN = ("train", "smoke", "--out")
# Imports take as long as all the rest; each start is a fork of a process that has done them, and does what the command does from there.
FORKS = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store, ray.train.torch, ray.data, ray.tune
import robustclip.commands.train
from robustclip.__main__ import main
print(flush=True)
for line in sys.stdin:
    if not (child := os.fork()):
        os.setsid()
        sys.argv = ["robustclip", *line.split()]
        main()
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")} | more


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_twenty_killed_starts_two_at_once_work(tmp_path: Path) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None
        forks.stdout.readline()
        for _ in range(STARTS):
            print(*TRAIN, out, file=forks.stdin, flush=True)
            child = int(forks.stdout.readline())
            time.sleep(draw.uniform(0, LONGEST))
            kill_family(child)
        forks.stdin.close()
    command = [sys.executable, "-m", "robustclip", *TRAIN, str(out)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    said = [each.communicate(timeout=1200) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    client = MlflowClient(store.tracking_uri(str(out)))
    (run,) = client.search_runs([client.get_experiment_by_name(store.EXPERIMENT).experiment_id])
    steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss"))
    assert steps == list(range(1, len(steps) + 1))
    assert run.info.status == "FINISHED"


# Sixteen commands that share an out folder, each a fork of a process that has imported MLflow.
WRITERS = """
import os, sys
import mlflow.tracking, mlflow.entities
from robustclip.runtime.tracking import Tracker
children = []
for i in range(16):
    if not (child := os.fork()):
        tracker = Tracker(sys.argv[1])
        run = tracker.run(f"key{i}", f"train {i}", {"i": i}, tracker.run("parent", "sweep", {}))
        for step in range(1, 7):
            tracker.curve(run, [{"step": step, "loss": i + step}])
        tracker.artefacts(run, {"table.md": str(i).encode()})
        tracker.finish(run)
        tracker.close()
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Run an MLflow server on a folder, and end it by SIGKILL."""
    where = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artefacts")]
    words = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(words, env=environment(), stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{ASKED}", timeout=60):
                break  # it answers /health long before it has opened its database
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def rows(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "lr": 0.1} for step in steps]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_dies_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    tracking.Tracker(str(tmp_path))  # makes the database that the server serves
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # this is about a server that is gone, not about a slow one
    monkeypatch.setattr(tracking, "PAUSE", 1.0)

    def work(tracker: tracking.Tracker, steps: range) -> tracking.Run:
        run = tracker.run("key", "train", {"eps": 4.0}, tracker.run("parent", "sweep", {}))
        for step in steps:
            tracker.curve(run, rows(step))
        return run

    with serving(tmp_path, port):
        tracker = tracking.Tracker(str(tmp_path / "out"))
        run = work(tracker, range(1, 6))
        tracker.close()
    started = time.monotonic()
    for step in range(6, 40):
        tracker.curve(run, rows(step))
    tracker.results(run, {"test/robust": 0.5, "seconds/training": 9.0}, step=39)
    tracker.artefacts(run, {"table.md": b"|a|"})
    tracker.finish(run)
    assert time.monotonic() - started < 60  # an hour's training must not wait for minutes at every step
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    with pytest.raises(UserError, match="run the same command again"):
        tracker.close()
    monkeypatch.setattr(tracking, "PATIENCE", 60.0)
    with serving(tmp_path, port):
        again = tracking.Tracker(str(tmp_path / "out"))  # the same command, which finds all work done
        same = work(again, range(1, 40))
        again.results(same, {"test/robust": 0.5, "seconds/training": 0.1}, step=39)
        again.close()
        tracker.close()  # and the first, had it waited
        assert same.id == run.id
        client = MlflowClient()
        assert len(client.search_runs([tracker.experiment])) == 2
        for name, steps in {"loss": range(1, 40), "lr": range(1, 40), "test/robust": [39], "seconds/training": [39]}.items():
            assert [point.step for point in client.get_metric_history(run.id, name)] == list(steps), name
        assert [each.path for each in client.list_artifacts(run.id)] == ["table.md"]
        assert client.get_run(run.id).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("served", [False, True], ids=["one file", "a server"])
def test_sixteen_writers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: str, served: bool) -> None:
    """And a model that one of them has logged comes back through the server, which alone reaches its files."""
    out, port = str(tmp_path / "out"), free_port()
    with ExitStack() as stack:
        if served:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
            stack.enter_context(serving(tmp_path, port))
        more = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT") if name in os.environ}
        subprocess.run([sys.executable, "-c", WRITERS, out], env=environment(**more), check=True, timeout=1200)
        tracker = tracking.Tracker(out)
        runs = tracker.client.search_runs([tracker.experiment])
        (parent,) = (run for run in runs if tracking.PARENT_TAG not in run.data.tags)
        children = {int(run.data.params["i"]): run for run in runs if run.data.tags.get(tracking.PARENT_TAG) == parent.info.run_id}
        assert sorted(children) == list(range(16))
        for i, run in children.items():
            points = tracker.client.get_metric_history(run.info.run_id, "loss")
            assert [(point.step, point.value) for point in points] == [(step, i + step) for step in range(1, 7)]
            assert [each.path for each in tracker.client.list_artifacts(run.info.run_id)] == ["table.md"]
            assert run.info.status == "FINISHED"
        made = tracker.run("a model", "train", {})
        tracker.model(made, tiny_checkpoint, models.identity(tiny_checkpoint))
        tracker.register(made, "best")
        found = {located(name, out) for name in (f"mlflow:{made.id}", "models:/best/1")}
        assert {models.identity(folder) for folder in found} == {models.identity(tiny_checkpoint)}
        assert all(folder.startswith(f"{out}/mlflow/") for folder in found) is served
