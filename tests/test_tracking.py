"""MLflow: runs are found again by tag, what is missing is added and nothing doubled, and a store that is away stops no work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from robustclip.base.errors import UserError
from robustclip.runtime import tracking


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> tracking.Tracker:
    return tracking.Tracker(str(tmp_path_factory.mktemp("mlflow")))


def steps_of(tracker: tracking.Tracker, run: tracking.Run, metric: str = "loss") -> list[int]:
    return sorted(point.step for point in tracker.client.get_metric_history(run.id, metric))


def rows(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "val/robust": 0.5} for step in steps]


def test_a_run_is_made_once_per_key_and_parent(tracker: tracking.Tracker) -> None:
    parent = tracker.run("sweep", "sweep", {"space": "epsilon"})
    child = tracker.run("trial", "train eps 4", {"threat.image.eps": 4.0}, parent)
    assert tracker.run("sweep", "sweep", {"space": "epsilon"}).id == parent.id
    assert tracker.run("trial", "train eps 4", {"threat.image.eps": 4.0}, parent).id == child.id
    assert tracker.run("trial", "train eps 4", {}, tracker.run("other sweep", "other", {})).id != child.id
    found = tracker.client.get_run(child.id).data
    assert found.params == {"threat.image.eps": "4.0"}
    assert found.tags[tracking.PARENT_TAG] == parent.id


def test_metrics_have_steps_and_runs_end(tracker: tracking.Tracker) -> None:
    run = tracker.run("curve", "curve", {})
    tracker.curve(run, rows(1, 2, 3))
    assert steps_of(tracker, run) == [1, 2, 3]
    tracker.artefacts(run, {"table.md": b"|a|", "records/x.parquet": b"PAR1"})
    assert {a.path for a in tracker.client.list_artifacts(run.id)} == {"table.md", "records"}
    assert tracker.client.get_run(run.id).info.status == "RUNNING"
    tracker.finish(run)
    assert tracker.client.get_run(run.id).info.status == "FINISHED"


def test_whatever_steps_a_curve_lacks_are_added_and_none_twice(tracker: tracking.Tracker) -> None:
    run = tracker.run("hole", "a driver was killed at step 4, its workers were at 6", {})
    for known in ((1, 2), (3, 4), (7, 8), range(1, 9), range(1, 9), (*range(1, 130), 129)):
        tracker.curve(run, rows(*known))
    assert steps_of(tracker, run) == steps_of(tracker, run, "val/robust") == list(range(1, 130))


def test_a_description_is_as_many_whole_lines_as_mlflow_takes(tracker: tracking.Tracker) -> None:
    run = tracker.run("described", "described", {})
    for text in ("| a table |\n| of two lines |", "\n".join("x" * 99 for _ in range(100))):
        tracker.describe(run, text)
        said = tracker.client.get_run(run.id).data.tags["mlflow.note.content"]
        assert (said == text) is (len(text) < tracking.NOTE)
        assert len(said) < 8000
        assert said == text or said.splitlines()[-1] == tracking.CUT
    assert len(said.splitlines()) == 80


def test_results_are_logged_once_and_again_when_they_differ(tracker: tracking.Tracker) -> None:
    run = tracker.run("results", "results", {})
    for seconds, robust in ((60.0, 0.5), (0.1, 0.5), (0.1, 0.25)):
        tracker.results(run, {"test/robust": robust, "test/clean": 0.75, "seconds/training": seconds}, step=8)
    history = tracker.client.get_metric_history(run.id, "test/robust")
    assert [(point.value, point.step) for point in history] == [(0.5, 8), (0.25, 8)]
    assert tracker.client.get_run(run.id).data.metrics["test/robust"] == 0.25


class Flaky:
    """A client whose store is away for the next calls: before it does what is asked, or after, so that only the answer is lost."""

    def __init__(self, client: Any):
        self.client, self.away, self.lost = client, False, ""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise MlflowException("API request failed with exception\nConnection refused")
            answer = getattr(self.client, name)(*args, **kwargs)
            if name == self.lost:
                self.away = True
                raise MlflowException("the answer was lost")
            return answer

        return call


@pytest.fixture
def flaky(tracker: tracking.Tracker, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    flaky = Flaky(tracker.client)
    monkeypatch.setattr(tracker, "client", flaky)
    monkeypatch.setattr(tracking, "PAUSE", 0.0)
    return flaky


@pytest.mark.parametrize("lost", ["", "create_run", "log_batch", "set_tag", "set_terminated"])
def test_a_store_that_is_away_for_a_while_gets_all_of_it_once(tracker: tracking.Tracker, flaky: Flaky, lost: str) -> None:
    flaky.away, flaky.lost = not lost, lost
    parent = tracker.run(f"parent {lost}", "parent", {"space": "x"})
    run = tracker.run(f"away {lost}", "away", {"a": 1, "b": 2}, parent)
    tracker.curve(run, rows(1, 2))
    tracker.curve(run, rows(3, 4))
    tracker.results(run, {"test/robust": 0.5}, step=4)
    tracker.tag(run, checkpoint="here")
    tracker.finish(run)
    assert tracker.waiting
    flaky.away, flaky.lost = False, ""
    tracker.close()
    found = flaky.client.search_runs([tracker.experiment], f"tags.`{tracking.KEY_TAG}` = 'away {lost}'")
    assert [each.info.run_id for each in found] == [run.id]
    assert (found[0].info.status, found[0].data.params) == ("FINISHED", {"a": "1", "b": "2"})
    assert found[0].data.tags[tracking.PARENT_TAG] == parent.id
    assert found[0].data.tags["robustclip.checkpoint"] == "here"
    assert steps_of(tracker, run) == [1, 2, 3, 4]
    assert steps_of(tracker, run, "test/robust") == [4]


def test_a_store_that_is_away_is_not_asked_all_the_time(tracker: tracking.Tracker, flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE", 600.0)
    run = tracker.run("rarely", "rarely", {})
    asked: list[str] = []
    flaky.away = True
    monkeypatch.setattr(flaky.client, "get_metric_history", lambda *args: asked.append("asked"), raising=False)
    for step in range(1, 20):
        tracker.curve(run, rows(step))
    assert len(tracker.waiting) == 19
    monkeypatch.undo()
    flaky.away = False
    tracker.close()


def test_a_store_that_stays_away_is_said_with_what_to_do(
    tracker: tracking.Tracker, flaky: Flaky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.0)
    run = tracker.run("stays", "stays", {})
    flaky.away = True
    tracker.curve(run, rows(1))
    with pytest.raises(UserError, match=r"complete, but MLflow at sqlite.* \(API .*refused\).*run the same command again") as caught:
        tracker.close()
    assert "\n" not in str(caught.value)
    flaky.away = False
    tracker.close()
    assert steps_of(tracker, run) == [1]
