"""MLflow: runs are found again by tag, points are not doubled, and a server that does not answer is an error at once."""

import time
from pathlib import Path

import pytest

from robustclip.base.errors import UserError
from robustclip.runtime import tracking


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> tracking.Tracker:
    return tracking.Tracker(str(tmp_path_factory.mktemp("mlflow")))


def test_a_run_is_made_once_per_key_and_parent(tracker: tracking.Tracker) -> None:
    parent = tracker.run("sweep", "sweep", {"space": "epsilon"})
    child = tracker.run("trial", "train eps 4", {"threat.image.eps": 4.0}, parent)
    assert tracker.run("sweep", "sweep", {"space": "epsilon"}) == parent
    assert tracker.run("trial", "train eps 4", {"threat.image.eps": 4.0}, parent) == child
    assert tracker.run("trial", "train eps 4", {}, tracker.run("other sweep", "other", {})) != child
    found = tracker.client.get_run(child).data
    assert found.params == {"threat.image.eps": "4.0"}
    assert found.tags[tracking.PARENT_TAG] == parent


def test_metrics_have_steps_and_runs_end(tracker: tracking.Tracker) -> None:
    run = tracker.run("curve", "curve", {})
    tracker.metrics(run, [{"step": step, "loss": 1 / step, "val/robust": 0.5} for step in (1, 2, 3)])
    assert tracker.last_step(run) == 3
    assert tracker.last_step(run, "never logged") == 0
    tracker.artefacts(run, {"table.md": b"|a|", "records/x.parquet": b"PAR1"})
    assert {a.path for a in tracker.client.list_artifacts(run)} == {"table.md", "records"}
    assert tracker.client.get_run(run).info.status == "RUNNING"
    tracker.finish(run)
    assert tracker.client.get_run(run).info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    started = time.monotonic()
    with pytest.raises(UserError, match="does not answer"):
        tracking.Tracker(str(tmp_path))
    assert time.monotonic() - started < 10


def test_the_embedded_store_needs_no_server(tmp_path: Path) -> None:
    assert tracking.tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert "--host 127.0.0.1" in tracking.how_to_open(str(tmp_path))
    tracking.check_reachable(tracking.tracking_uri(str(tmp_path)))
