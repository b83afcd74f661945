"""The tests' sweep: two trials of the smallest recipe, one of them impossible, on the tiny CLIP."""

import time
from typing import Any, NamedTuple

from ray import tune

from robustclip.evaluation import protocols
from robustclip.runtime.tracking import Tracker
from robustclip.sweeps import spaces, tuning
from robustclip.sweeps.report import publish
from robustclip.training.config import Config

SPACE = spaces.Space("tiny", "Does it run?", "smoke", {"threat.image.eps": tune.grid_search([2.0, -1.0])}, "val/robust", "max")


class Swept(NamedTuple):
    """A sweep that ended: what it started from, where it wrote, and what it says."""

    config: Config
    out: str
    tracker: Tracker
    outcome: tuning.Outcome
    text: str

    @property
    def run(self) -> dict[str, Any]:
        """The result of the training that could be done."""
        (trial,) = (trial for trial in self.outcome.trials if trial.result)
        assert trial.result is not None
        found: dict[str, Any] = trial.result["run"]
        return found


def swept(config: Config, out: str, tracker: Tracker) -> Swept:
    """Run the tests' sweep."""
    outcome = tuning.sweep(SPACE, config, protocols.named("smoke"), out, tracker)
    text = publish(SPACE, config, outcome, protocols.named("smoke"), out, tracker, time.monotonic())
    return Swept(config, out, tracker, outcome, text)
