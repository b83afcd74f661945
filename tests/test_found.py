"""A sweep whose trials are all trained: they are found without Tune, and without Ray where nothing is to be attacked."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sweeping
from ray import tune
from sweeping import Swept

from robustclip.evaluation import complete, protocols
from robustclip.models.dress import TokenPrompt
from robustclip.runtime.tracking import PARENT_TAG, Tracker
from robustclip.sweeps import spaces, tuning
from robustclip.sweeps.report import publish

EPS = "threat.image.eps"
DONE = replace(sweeping.SPACE, name="done", space={EPS: tune.grid_search([2.0])})


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*given: Any, **named: Any) -> None:
        raise AssertionError("Ray or Tune was started")

    monkeypatch.setattr(tuning, "tune_trials", forbidden)
    monkeypatch.setattr(complete, "connect", forbidden)


def test_a_grid_has_every_trial_as_it_is_sampled() -> None:
    sampled = {"trainable": tune.grid_search([TokenPrompt(4), TokenPrompt(8)]), EPS: tune.grid_search([4.0, 2.0]), "optim.epochs": 3}
    space = replace(DONE, space=sampled)
    found = spaces.grid(space)
    assert found is not None
    assert len(found) == spaces.count(space, 1) == 4
    assert {(each["trainable"], each[EPS]) for each in found} == {(TokenPrompt(n), eps) for n in (4, 8) for eps in (4.0, 2.0)}
    assert all(each["optim.epochs"] == 3 for each in found)


def test_only_a_grid_that_is_all_trained_is_found(swept: Swept, tmp_path: Path) -> None:
    config, out = swept.config, swept.out
    assert tuning.trained(DONE, config, out) == [{EPS: 2.0}]
    assert tuning.trained(DONE, config, str(tmp_path)) is None
    assert tuning.trained(DONE, config, out, samples=2) is None
    for sampled in (
        {EPS: tune.grid_search([2.0, 1.0])},  # the second is not trained
        {EPS: tune.grid_search([2.0, -1.0])},  # nor can be
        {EPS: tune.uniform(1.0, 3.0)},
        {"interpolation": tune.grid_search([0.5])},
    ):
        assert tuning.trained(replace(DONE, space=sampled), config, out) is None


def test_what_is_found_is_what_tune_brought(swept: Swept, tmp_path: Path, nothing_starts: None) -> None:
    tracker, protocol, config, out = Tracker(str(tmp_path)), protocols.named("smoke"), swept.config, swept.out
    outcome = tuning.found(DONE, config, protocol, out, tracker, [{EPS: 2.0}])
    (trial,), (brought,) = outcome.trials, (each for each in swept.outcome.trials if each.result)
    assert outcome.chosen is trial
    assert trial.result is not None
    assert brought.result is not None
    mine = {name: value for name, value in trial.result.items() if not name.startswith("seconds/")}
    assert mine == {name: brought.result[name] for name in mine}
    assert {"test/clean", "val/robust", "run", "model", "inputs"} <= mine.keys()
    text = publish(DONE, config, outcome, protocol, out, tracker, time.monotonic())
    rows = [line for line in text.splitlines() if line.startswith("| train eps 2")]
    assert rows
    assert {*rows} <= {*swept.text.splitlines()}
    children = [run for run in tracker.client.search_runs([tracker.experiment]) if run.data.tags.get(PARENT_TAG) == outcome.parent.id]
    assert [run.info.status for run in children] == ["FINISHED"]
    assert children[0].data.metrics["test/clean"] == brought.result["test/clean"]


def test_a_cell_that_is_missing_starts_ray(swept: Swept, tmp_path: Path, nothing_starts: None) -> None:
    protocol = protocols.named("smoke").changed(eps=(3.0,))
    with pytest.raises(AssertionError, match="was started"):
        tuning.found(DONE, swept.config, protocol, swept.out, Tracker(str(tmp_path)), [{EPS: 2.0}])
