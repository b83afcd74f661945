"""What an MLflow server that dies under many writers loses: they log as trainings do, it is killed, and started again later.

    python benchmarks/outage.py [--writers 16] [--seconds 60] [--steps 120]

Every writer is a process with the tracker of the commands. It logs a step a second of a run of its own, all under one parent run, then
an artefact, which goes through the server (`mlflow server --artifacts-destination`, on SQLite). After 20 seconds the server and its
workers get SIGKILL; `--seconds` later it is started again on the same port. Then the store is read back. Ends with status 1 if a point,
a parameter, an artefact or a run is lost or there twice.
"""

import argparse
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEFORE = 20.0  # seconds of writing before the server dies
ASKED = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Run an MLflow server on a folder, from when it answers, and end it by SIGKILL."""
    where = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artefacts")]
    words = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{ASKED}", timeout=60):
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def loss(writer: int, step: int) -> float:
    """Return what a writer logs at a step."""
    return writer + 1 / step


def write(writer: int, steps: int, out: str) -> None:
    """Log a run of its own as a training does, and keep how long each call took."""
    from robustclip.runtime.tracking import Tracker

    tracker = Tracker(out)
    run = tracker.run(f"key{writer}", f"train {writer}", {"writer": writer}, tracker.run("parent", "sweep", {}))
    calls = []
    for step in range(1, steps + 1):
        began = time.monotonic()
        tracker.curve(run, [{"step": step, "loss": loss(writer, step)}])
        calls.append(time.monotonic() - began)
        time.sleep(max(0.0, 1.0 - calls[-1]))
    tracker.artefacts(run, {"table.md": f"writer {writer}".encode()})
    tracker.finish(run)
    began = time.monotonic()
    tracker.close()
    Path(out, f"writer{writer}.json").write_text(json.dumps({"longest": max(calls), "closing": time.monotonic() - began}))


def read(client: Any, experiment: str) -> list[dict[str, Any]]:
    """Return what the store has: each run's key, status, parameters, points (step, value) of its curve and the text of its artefact."""
    found = []
    for run in client.search_runs([experiment], max_results=1000):
        id_ = run.info.run_id
        points = [(point.step, point.value) for point in client.get_metric_history(id_, "loss")]
        text = ""
        if any(file.path == "table.md" for file in client.list_artifacts(id_)):
            text = Path(client.download_artifacts(id_, "table.md")).read_text()
        found.append(
            {"key": run.data.tags["robustclip.key"], "status": run.info.status, "params": run.data.params, "points": points, "text": text}
        )
    return found


def faults(found: Sequence[Mapping[str, Any]], writers: int, steps: int) -> list[str]:
    """Return what is lost or there twice, nothing where the store has all that was written, once."""
    keys = Counter(run["key"] for run in found)
    wanted = {"parent": 1} | {f"key{writer}": 1 for writer in range(writers)}
    said = [f"{keys.get(key, 0)} runs {key}, not {n}" for key, n in wanted.items() if keys.get(key, 0) != n]
    said += [f"a run {key} that nobody made" for key in keys.keys() - wanted.keys()]
    for run in found:
        if not run["key"].startswith("key"):
            continue
        writer = int(run["key"].removeprefix("key"))
        there, due = Counter(run["points"]), Counter((step, loss(writer, step)) for step in range(1, steps + 1))
        said += [f"{run['key']}: point {point} is lost" for point in (due - there)]
        said += [f"{run['key']}: point {point} is there twice or was never written" for point in (there - due)]
        if run["params"] != {"writer": str(writer)}:
            said.append(f"{run['key']}: parameters {run['params']}")
        if run["text"] != f"writer {writer}":
            said.append(f"{run['key']}: its artefact says {run['text']!r}")
        if run["status"] != "FINISHED":
            said.append(f"{run['key']}: it is {run['status']}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="for which the server is away (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="that each writer logs, one a second (default: %(default)s)")
    args = parser.parse_args()
    from mlflow import MlflowClient

    from robustclip.runtime.tracking import Tracker

    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        Tracker(name)  # makes the database that the server serves
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        out = Path(name, "out")
        out.mkdir()
        with serving(Path(name), port):
            fork = multiprocessing.get_context("fork")  # what they import is imported here, once
            processes = [fork.Process(target=write, args=(i, args.steps, str(out))) for i in range(args.writers)]
            for process in processes:
                process.start()
            time.sleep(BEFORE)
        died = time.monotonic()
        time.sleep(args.seconds)
        with serving(Path(name), port):
            back = time.monotonic()
            for process in processes:
                process.join()
            ended = time.monotonic()
            client = MlflowClient()
            experiment = client.get_experiment_by_name("robustclip")
            said = faults(read(client, experiment.experiment_id), args.writers, args.steps)
        failed = sum(process.exitcode != 0 for process in processes)
        kept = [json.loads(path.read_text()) for path in out.glob("writer*.json")]
    print(f"{args.writers} writers, {args.steps} steps each; the server was away for {back - died:.0f} s")
    print(f"writers that failed      {failed}")
    print(f"lost or twice            {len(said)} of {args.writers * args.steps} points and {2 * args.writers + 1} runs and artefacts")
    print(f"longest step's logging   {max((each['longest'] for each in kept), default=0):.1f} s")
    print(f"the last writer's end    {ended - back:.0f} s after the server was back")
    print("\n".join(said[:20]))
    sys.exit(bool(said or failed))


if __name__ == "__main__":
    main()
