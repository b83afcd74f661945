"""MLflow: one experiment, one writer. A sweep is a parent run, a trial its child, both found again by tag, so a re-run adds none.

What is logged is also in files, and every write compares them with what the store has: repeated or late, by this command or by the next, it
adds what is missing and nothing twice. So a store that is away for a while stops no work.
"""

import logging
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustclip.base.commit import git_commit
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.runtime import logged, store

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "robustclip.key"
RESULTS = ("val/", "test/")  # what a finished run came to; times and costs beside them differ when finished work is found again
PAUSE = 15.0  # seconds before a store that was away is asked again
PATIENCE = 60.0  # seconds that the end of a command waits for it
NOTE, CUT = 7900, "... the whole text is table.md, among the artefacts"  # characters of a run's description; a tag holds 8,000


def source() -> dict[str, str]:
    """Return MLflow's tags for what made a run: the command line, and the commit where it is known."""
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE

    command = {MLFLOW_SOURCE_NAME: " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:5000], MLFLOW_SOURCE_TYPE: "LOCAL"}
    return command | ({MLFLOW_GIT_COMMIT: commit} if (commit := git_commit()) else {})


@dataclass(eq=False)
class Run:
    """A run by its key; `id` is MLflow's, empty until the store has it."""

    key: str
    name: str
    params: Mapping[str, Any]
    parent: "Run | None" = None
    id: str = ""


class Tracker:
    """Writes runs, their parameters, metrics and artefacts, in the order asked for, all of it from one process.

    What the store does not take waits, until `close` at the latest. Raises UserError at once for a store that cannot be used.
    """

    def __init__(self, out: str):
        self.out, self.uri = out, store.tracking_uri(out)
        self._connect()

    def _connect(self) -> None:
        self.lock = store.database_of(self.uri) or str(store.store_folder(self.out) / "mlflow")
        self.client, self.experiment = store.connect(self.uri, self.out)
        self.waiting: deque[Callable[[], None]] = deque()
        self.away, self.next_try, self.last = "", 0.0, 0

    def __getstate__(self) -> dict[str, Any]:
        return {"out": self.out, "uri": self.uri}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _write(self, write: Callable[[], None]) -> None:
        self.waiting.append(write)
        if time.monotonic() >= self.next_try:
            self._settle()

    def _settle(self) -> None:
        """Write what waits, up to the first thing that the store does not take."""
        while self.waiting:
            try:
                with alone(self.lock):  # another command may look for the same run, and add the same points
                    self.waiting[0]()
            except Exception as error:  # whatever is wrong with the store, the work goes on, and it is said in the end
                if not self.away:
                    log.warning("MLflow takes nothing now (%s); the work goes on, what is to be logged waits", store.reason_of(error))
                self.away, self.next_try = store.reason_of(error), time.monotonic() + PAUSE
                return
            self.waiting.popleft()
        if self.away:
            log.info("MLflow has all that waited")
        self.away = ""

    def close(self) -> None:
        """Return when the store has everything; raises UserError when it has not after PATIENCE seconds."""
        end = time.monotonic() + PATIENCE
        self._settle()
        if self.waiting:
            log.info("waiting up to %.0f s for MLflow", PATIENCE)
        while self.waiting and time.monotonic() < end:
            time.sleep(1.0)
            self._settle()
        if self.waiting:
            where = store.without_password(self.uri)
            raise UserError(
                f"the results under {self.out} are complete, but MLflow at {where} lacks some of them ({self.away}): "
                "when it is back, run the same command again, which finds all work done and only logs"
            )

    def run(self, key: str, name: str, params: Mapping[str, Any], parent: Run | None = None) -> Run:
        """Return the run tagged `key` (under `parent`), made with its parameters if there is none, and marked as running."""
        run = Run(key, name, params, parent)
        self._write(lambda: self._find_or_make(run))
        return run

    def _find_or_make(self, run: Run) -> None:
        from mlflow.entities import Param

        under = f" and tags.`{PARENT_TAG}` = '{run.parent.id}'" if run.parent else ""
        wanted = f"tags.`{KEY_TAG}` = '{run.key}'{under}"
        found = self.client.search_runs([self.experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        if found:
            run.id = found[0].info.run_id
            self.client.update_run(run.id, status="RUNNING")
        else:
            tags = {KEY_TAG: run.key} | ({PARENT_TAG: run.parent.id} if run.parent else {}) | source()
            run.id = self.client.create_run(self.experiment, run_name=run.name, tags=tags).info.run_id
        missing = run.params.keys() - (found[0].data.params.keys() if found else ())
        if missing:  # MLflow takes 100 parameters a batch; a config has about 40
            self.client.log_batch(run.id, params=[Param(k, str(v)) for k, v in run.params.items() if k in missing], synchronous=True)

    def curve(self, run: Run, rows: Iterable[Mapping[str, float]]) -> None:
        """Log the rows of a curve whose "step" the run lacks, whichever these are; a row has a "loss", and MLflow's plain names."""
        by_step, now = {int(row["step"]): row for row in rows}, self._now()
        self._write(lambda: self._add_steps(run, by_step, now))

    def _add_steps(self, run: Run, by_step: Mapping[int, Mapping[str, float]], now: int) -> None:
        there = {point.step for point in self.client.get_metric_history(run.id, "loss")}
        missing = [row for step, row in by_step.items() if step not in there]
        for first in range(0, len(missing), 50):  # MLflow takes 1000 points at once, all or none of them; a row has about 10
            self._log(run, missing[first : first + 50], now)

    def results(self, run: Run, values: Mapping[str, float], step: int = 0) -> None:
        """Log at a step what a finished run came to (val/, test/) and what that took, unless the run has these results already."""
        now = self._now()
        self._write(lambda: self._add_results(run, {**values, "step": step}, now))

    def _add_results(self, run: Run, values: Mapping[str, float], now: int) -> None:
        there = self.client.get_run(run.id).data.metrics
        if any(there.get(name) != value for name, value in values.items() if name.startswith(RESULTS)):
            self._log(run, [values], now)

    def _now(self) -> int:
        """Return the time in ms, later than any before: of two values at a step MLflow shows the later one."""
        self.last = max(int(time.time() * 1000), self.last + 1)
        return self.last

    def _log(self, run: Run, rows: Iterable[Mapping[str, float]], now: int) -> None:
        """Log rows as of `now`: a point that is sent again, since the answer was lost, is the same point to MLflow."""
        from mlflow.entities import Metric

        points = [Metric(k, float(v), now, int(row["step"])) for row in rows for k, v in row.items() if k != "step"]
        self.client.log_batch(run.id, points, synchronous=True)

    def tag(self, run: Run, **tags: str) -> None:
        """Set tags, their names after the prefix robustclip."""

        def write() -> None:
            for name, value in tags.items():
                self.client.set_tag(run.id, f"robustclip.{name}", value, synchronous=True)

        self._write(write)

    def describe(self, run: Run, markdown: str) -> None:
        """Put a text at the head of the run's page, as many whole lines of it as MLflow takes."""
        kept, room = [], NOTE
        for line in markdown.splitlines():
            room -= len(line) + 1
            if room < 0:
                kept.append(CUT)
                break
            kept.append(line)
        self._write(lambda: self.client.set_tag(run.id, "mlflow.note.content", "\n".join(kept), synchronous=True))

    def inputs(self, run: Run, inputs: Sequence[logged.Input]) -> None:
        """Log the data sets that a run reads."""
        self._write(lambda: logged.log_inputs(self.client, run.id, inputs))

    def model(self, run: Run, checkpoint: str, sha256: str) -> None:
        """Log the folder of a checkpoint as the run's model, found again by `mlflow:RUN_ID`."""
        self._write(lambda: logged.log_model(self.client, run.id, checkpoint, sha256))

    def register(self, run: Run, name: str) -> None:
        """Make the run's model the next version of a registered model, found again by `models:/NAME/VERSION`."""
        self._write(lambda: logged.register(self.client, run.id, name))

    def watch(self, run: Run) -> None:
        """Let MLflow follow this machine's CPUs, GPUs, disk and network beside a run, if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is true."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

        if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # its thread ends with the run

            self._write(lambda: SystemMetricsMonitor(run.id, resume_logging=True, tracking_uri=self.uri).start())

    def artefacts(self, run: Run, files: Mapping[str, bytes]) -> None:
        """Attach files by name ("records/x.parquet": in a folder)."""
        self._write(lambda: self._attach(run, files))

    def _attach(self, run: Run, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self.client.log_artifacts(run.id, folder)

    def finish(self, run: Run, failed: bool = False) -> None:
        """Close a run."""
        self._write(lambda: self.client.set_terminated(run.id, "FAILED" if failed else "FINISHED"))
