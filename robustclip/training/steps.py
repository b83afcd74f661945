"""The core of every training loop: from units to steps, with Ray or without."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from robustclip.data.plan import Plan
from robustclip.training.learner import Learner


def steps(learner: Learner, units: Iterable[Mapping[str, Any]], plan: Plan, workers: int = 1) -> Iterator[dict[str, float]]:
    """Yield the report of each step, its number with it, from the learner's own step on.

    `units` are those of one of `workers`, in the plan's order, as `read_unit` returns them or as tensors; those of steps already taken are
    passed over. Raises RuntimeError where they begin after the learner's step.
    """
    pending = 0
    for unit in units:
        at = int(unit["step"][0])
        if at < learner.step:
            continue
        if at > learner.step:
            raise RuntimeError(f"the stream is at step {at}, the weights are at step {learner.step}")
        learner.accumulate(unit["pixels"], torch.as_tensor(unit["label"]), [str(key) for key in unit["key"].tolist()])
        pending += 1
        if pending == plan.units_per_step // workers:
            pending = 0
            yield learner.update() | {"step": learner.step}
