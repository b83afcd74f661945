"""MLflow: one experiment, one writer. A sweep is a parent run, a trial its child, both found again by tag, so a re-run adds none."""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError

log = logging.getLogger(__name__)

EXPERIMENT = "robustclip"
PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "robustclip.key"
LOGGED_TAG = "robustclip.logged"  # the result whose metrics a run already has: a re-run must not add the same points twice
REACHABLE_WITHIN = 5.0  # seconds


def store_folder(out: str) -> Path:
    """Return the local folder of mlflow.db: `out` itself, or a fixed one in the home folder when `out` is an object store."""
    return Path(out) if storage.is_local(out) else Path.home() / "robustclip"


def tracking_uri(out: str) -> str:
    """Return MLFLOW_TRACKING_URI, or the embedded sqlite store under `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_folder(out)}/mlflow.db"


def how_to_open(out: str) -> str:
    """Return the command that opens the UI on this machine, or the server's address."""
    uri = tracking_uri(out)
    if uri.startswith("http"):
        return uri
    here, command = Path.cwd(), Path(sys.executable).with_name("mlflow")
    command = command.relative_to(here) if command.is_relative_to(here) else command
    return f"{command} ui --host 127.0.0.1 --port 5000 --backend-store-uri {uri}"


def check_reachable(uri: str) -> None:
    """Raise UserError within 10 s when an http(s) tracking server does not answer: before hours of training, not after."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=REACHABLE_WITHIN).raise_for_status()
    except requests.RequestException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"MLFLOW_TRACKING_URI={uri} does not answer ({reason}): start that server or unset the variable") from error


class Tracker:
    """Writes runs, their parameters, metrics and artefacts; all of it from one process."""

    def __init__(self, out: str):
        self.out, self.uri = out, tracking_uri(out)
        check_reachable(self.uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before MLflow is imported: it would write to the home folder
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._connect()

    def _connect(self) -> None:
        from mlflow import MlflowClient

        local = not self.uri.startswith("http")
        if local:
            store_folder(self.out).mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(self.uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        artifacts = (store_folder(self.out) / "mlartifacts").as_uri() if local else None
        self.experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)

    def __getstate__(self) -> dict[str, Any]:
        return {"out": self.out, "uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def run(self, key: str, name: str, params: Mapping[str, Any], parent: str | None = None) -> str:
        """Return the id of the run tagged `key` (under `parent`), made with its parameters if there is none, and marked as running."""
        from mlflow.entities import Param

        under = f" and tags.`{PARENT_TAG}` = '{parent}'" if parent else ""
        found = self.client.search_runs([self.experiment], f"tags.`{KEY_TAG}` = '{key}'{under}", max_results=1)
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        tags = {KEY_TAG: key} | ({PARENT_TAG: parent} if parent else {})
        run_id = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        # MLflow takes 100 parameters a batch; a config has about 40.
        self.client.log_batch(run_id, params=[Param(k, str(v)) for k, v in params.items()])
        return run_id

    def metrics(self, run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Log rows of metrics, each with its "step" (0 without one); MLflow's plain names: letters, digits, / _ . - and spaces."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(k, float(v), now, int(row.get("step", 0))) for row in rows for k, v in row.items() if k != "step"]
        for first in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[first : first + 1000])

    def logged(self, run_id: str) -> str | None:
        """Return which result's metrics the run has already."""
        return self.client.get_run(run_id).data.tags.get(LOGGED_TAG)

    def last_step(self, run_id: str, metric: str = "loss") -> int:
        """Return the last step of a curve, 0 if there is none: a resumed trial goes on from there."""
        return max((point.step for point in self.client.get_metric_history(run_id, metric)), default=0)

    def new_steps(self, run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Log the rows of a curve that lie beyond its last step: a resumed run repeats none."""
        seen = self.last_step(run_id)
        self.metrics(run_id, [row for row in rows if row["step"] > seen])

    def tag(self, run_id: str, **tags: str) -> None:
        """Set tags; an underscore in a name becomes a dot after the prefix robustclip."""
        for name, value in tags.items():
            self.client.set_tag(run_id, f"robustclip.{name}", value)

    def artefacts(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Attach files by name ("records/x.parquet": in a folder)."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self.client.log_artifacts(run_id, folder)

    def finish(self, run_id: str, failed: bool = False) -> None:
        """Close a run."""
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
