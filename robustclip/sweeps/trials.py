"""The trials of a sweep as the driver sees them: what each is called, how it ended, and the callback that tells MLflow."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from robustclip.base.forecast import left
from robustclip.base.values import key
from robustclip.names import written
from robustclip.runtime.logged import Input
from robustclip.runtime.tracking import Run, Tracker
from robustclip.sweeps.spaces import INTERPOLATION, RECIPE, TEST_TIME, Space, first_config, shared, trial_config
from robustclip.test_time import TestTime
from robustclip.training.config import Config

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """One trial as it ended: the sampled fields, its key, and its result, or why it has none: a failure, or a stop at an epoch."""

    sample: dict[str, Any]
    key: str
    result: dict[str, Any] | None = None
    failure: str | None = None
    stopped: float | None = None

    @property
    def label(self) -> str:
        """What tables call it: the last part of each sampled path with its value; a dataclass speaks for itself."""
        values = [(path.rsplit(".", 1)[-1], value) for path, value in self.sample.items()]
        said = [readable(value) if dataclasses.is_dataclass(value) else f"{name} {readable(value)}" for name, value in values]
        return ("" if set(self.sample) in ({INTERPOLATION}, {TEST_TIME}) else "train ") + ", ".join(said)

    @property
    def model(self) -> str:
        """The name of the model that was evaluated: the checkpoint, or an interpolation of it."""
        assert self.result is not None
        return self.result["model"]


def readable(value: Any) -> str:
    """Return a sampled value as tables and axes show it: 0.5, (1, 0.1), TokenPrompt(tokens=4, deep=False), tpt[views=8], all (None)."""
    if value is None:  # of data.n and data.per_class
        return "all"
    if isinstance(value, TestTime):
        return written(value, "").removesuffix(":")
    if isinstance(value, tuple | list):
        return f"({', '.join(map(readable, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


class SweepCallback(tune.Callback):
    """Tune's callback in the driver: MLflow's only writer, and what says on the log how the trials fare.

    `when_slot_is_free` is called once, when the first trial ends after all `expected` ones have started.
    """

    def __init__(self, tracker: Tracker, parent: Run, space: Space, base: Config, expected: int, when_slot_is_free: Callable[[], None]):
        self.tracker, self.parent, self.space, self.base = tracker, parent, space, base
        self.expected, self.when_slot_is_free = expected, when_slot_is_free
        self.trials: dict[str, Trial] = {}
        self.runs: dict[str, Run] = {}
        self.free, self.ended, self.started = False, 0, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "when_slot_is_free": None}  # Tune pickles its callbacks; this one may hold a thread

    def one_ended(self) -> None:
        """Say how far the sweep is, and once that no trial waits for the place of one that ended."""
        self.ended += 1
        log.info("%d of %d trials ended%s", self.ended, self.expected, left(self.ended, self.expected, time.monotonic() - self.started))
        if len(self.trials) == self.expected and not self.free:
            self.free = True
            self.when_slot_is_free()

    def begin(self, trial: str, sample: dict[str, Any]) -> None:
        """Note that a trial, told by its id, has started with what it samples."""
        # Not trial_config(): a value it refuses is the trial's failure, and must not end the sweep from inside a callback.
        start = first_config(self.space, sample[RECIPE]) if RECIPE in sample else self.base
        mine = self.trials.setdefault(trial, Trial(sample, key(start, sample)))
        self.runs[trial] = self.tracker.run(mine.key, mine.label, shared(self.space, self.base) | sample, self.parent)
        log.info("trial %s: started", mine.label)

    def tell(self, trial: str, result: dict[str, Any]) -> None:
        """Note what a trial reports."""
        mine, run = self.trials[trial], self.runs[trial]
        if "failure" in result:
            mine.failure = result["failure"]
            self.tracker.tag(run, failure=mine.failure)
            log.error("trial %s failed: %s", mine.label, mine.failure)
        elif result.get("final"):
            mine.result = result
            log_final(self.tracker, run, result)
            self.tracker.tag(run, **trial_config(self.space, self.base, mine.sample).tags())
            log.info("trial %s: finished", mine.label)
        elif "waiting" in result:
            log.info("trial %s: another process trains it, waiting for that", mine.label)
        elif "curve" in result:
            self.tracker.curve(run, result["curve"])
            log.info(
                "trial %s: epoch %d of %d, loss %.2f, held out: clean %.0f %%, robust %.0f %%",
                mine.label,
                result["epoch"],
                trial_config(self.space, self.base, mine.sample).optim.epochs,
                result["loss"],
                100 * result["val/clean"],
                100 * result["val/robust"],
            )
        else:
            log.info("trial %s: evaluated %s cells", mine.label, result.get("cells"))

    def end(self, trial: str, epoch: float | None = None) -> None:
        """Note that a trial has ended, in this epoch where it was stopped."""
        mine = self.trials[trial]
        self.tracker.finish(self.runs[trial], failed=mine.failure is not None)
        if not (mine.result or mine.failure):
            mine.stopped = epoch
            log.info("trial %s: stopped early after epoch %s", mine.label, mine.stopped)
        self.one_ended()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.begin(trial.trial_id, dict(trial.config))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.tell(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.end(trial.trial_id, trial.last_result.get("epoch"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self.trials[trial.trial_id]
        mine.failure = reason(trial)
        log.error("trial %s failed: %s", mine.label, mine.failure)
        self.tracker.tag(self.runs[trial.trial_id], failure=mine.failure)
        self.tracker.finish(self.runs[trial.trial_id], failed=True)
        self.one_ended()


def reason(trial: Any) -> str:
    """Return the last line of a crashed trial's error."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).is_file() else "no reason was given"
    return [line.strip() for line in text.splitlines() if line.strip()][-1]


def log_final(tracker: Tracker, run: Run, result: Mapping[str, Any]) -> None:
    """Log a trial's test metrics and where its checkpoint lies, once: a re-run finds them there."""
    trained = result["run"]
    tracker.curve(run, trained["history"])
    curve = {name: value for row in trained["history"] for name, value in row.items()}
    # What is measured once, at the end, is in no curve; and an interpolated model has values of its own.
    held_out = {name: value for name, value in result.items() if name.startswith("val/") and curve.get(name) != value}
    summary = {name: value for name, value in result.items() if name.startswith(("test/", "seconds/", "cost/"))}
    tracker.results(run, summary | held_out, trained["metrics"]["step"])
    tracker.tag(run, checkpoint=trained["checkpoint"], weights_sha256=trained["sha256"], model=result["model"])
    tracker.inputs(run, [Input(**each) for each in result["inputs"]])
    tracker.model(run, trained["checkpoint"], trained["sha256"])
    tracker.artefacts(run, {"result.json": json.dumps(trained, indent=1).encode()})
