"""The whole road on the smallest recipe: Tune -> Train -> evaluator -> MLflow -> report, and the same command again."""

import time
from pathlib import Path

import pytest
from ray import tune

from robustclip import protocols, spaces, storage, tuning
from robustclip.config import Config, override
from robustclip.recipes import RECIPES
from robustclip.sweep_report import publish
from robustclip.tracking import KEY_TAG, PARENT_TAG, Tracker

SPACE = spaces.Space("tiny", "Does it run?", "smoke", {"threat.image.eps": tune.grid_search([2.0, -1.0, 0.0])}, "val/robust", "max")


@pytest.fixture
def config(tiny_checkpoint: str) -> Config:
    return override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"})


def run(config: Config, out: str, tracker: Tracker) -> tuple[tuning.Outcome, str]:
    outcome = tuning.sweep(SPACE, config, protocols.named("smoke"), out, tracker)
    return outcome, publish(SPACE, config, outcome, protocols.named("smoke"), out, tracker, time.monotonic())


def test_a_sweep_runs_fails_honestly_and_continues(ray_session: None, tmp_path: Path, config: Config) -> None:
    """Three trials, one impossible (a negative eps): the others finish, its reason is kept, a second run adds nothing."""
    out = str(tmp_path)
    tracker = Tracker(out)
    outcome, text = run(config, out, tracker)
    assert [trial.sample["threat.image.eps"] for trial in outcome.trials if trial.result] == [2.0, 0.0]
    (failed,) = outcome.failures
    assert "not negative" in (failed.failure or "")
    assert outcome.chosen is not None
    assert outcome.chosen.label in text
    for place in ("report.html", "records", "model", "mlflow ui"):
        assert place in text
    written = {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{out}/records")}
    weights = {trial.key: trial.result["run"]["sha256"] for trial in outcome.trials if trial.result}

    again, text_again = run(config, out, tracker)
    assert {trial.key: trial.result["run"]["sha256"] for trial in again.trials if trial.result} == weights
    assert {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{out}/records")} == written
    assert text_again.split("time:")[0] == text.split("time:")[0]
    check_mlflow(tracker, outcome.parent, {trial.key for trial in outcome.trials})


def check_mlflow(tracker: Tracker, parent: str, keys: set[str]) -> None:
    """One parent and one child per trial after two runs, each child with params, one curve, per-set metrics and artefacts."""
    runs = tracker.client.search_runs([tracker.experiment])
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent]
    assert len(runs) == len(children) + 1
    assert {run.data.tags[KEY_TAG] for run in children} == keys
    for child in children:
        if child.info.status == "FAILED":
            assert "not negative" in child.data.tags["robustclip.failure"]
            continue
        steps = [point.step for point in tracker.client.get_metric_history(child.info.run_id, "loss")]
        assert steps == sorted(set(steps)) == list(range(1, len(steps) + 1))
        assert child.data.params["optim.batch"] == "16"
        assert {"test/clean", "test/robust_2", "test/digits/clean", "test/shapes/robust_2", "val/robust"} <= set(child.data.metrics)
        assert len(tracker.client.get_metric_history(child.info.run_id, "test/clean")) == 1
        assert {a.path for a in tracker.client.list_artifacts(child.info.run_id)} == {"result.json", "records"}
    assert {"table.md", "report.html", "clean_against_robust.png"} <= {a.path for a in tracker.client.list_artifacts(parent)}
