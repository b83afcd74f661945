"""What the pieces of benchmarks/photographs.py share: where everything lies, what is scored how, and the commands that they give."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import photo_sets
from photo_runs import CHANGES, EPS, SHORT, TOWER, Runs
from photo_sets import SCORED
from test_time import Bench

from robustclip.attacks import APGD
from robustclip.base import storage
from robustclip.evaluation import protocols
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.protocols import Protocol
from robustclip.records import survival
from robustclip.records.survival import Outcomes
from robustclip.runtime import cluster

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
INSIDE = "tiny-tuned"
PROTOCOL = Protocol("photographs", SCORED, (APGD(20),), (1.0, EPS), n=80)
# Trends, by the space that asks: whether the rate that was chosen for TeCoA goes in, or the space and its recipes have their own.
SWEEPS = {"epsilon": True, "interpolation": True, "trainable": False, "train_size": False}


@dataclass(frozen=True)
class Study:
    """Everything under one folder `out`; `n` images of each scored set, `seeds` of the comparison; `changes` of every training."""

    out: str
    data: str
    seeds: tuple[int, ...] = (0, 1)
    n: int = 80
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def clip(self) -> str:
        """The pre-trained CLIP's folder."""
        return storage.join(self.out, "photos")

    @property
    def runs(self) -> Runs:
        """Its trainings."""
        return Runs(self.clip, self.out, self.changes)

    def classes(self, protocol: Protocol) -> dict[str, int]:
        """Return set -> number of classes."""
        return protocols.resolve(protocol, self.out).classes

    def outcomes(self, names: Sequence[str], protocol: Protocol) -> dict[str, Outcomes]:
        """Return what became of every image under models, by display name, computing what has no records yet."""
        resolved = protocols.resolve(protocol, self.out)
        table = evaluate(names, resolved, self.out, actors=int(cluster.total()[0]), on_progress=lambda done: print(done, flush=True))
        return survival.outcomes_of(table, resolved.describe())

    @property
    def to(self) -> list[str]:
        """The option that says where results go."""
        return ["--out", self.out]

    def pretraining(self) -> list[str]:
        """Return the command that makes the CLIP."""
        return script("pretrain", "photos", "--captions", photo_sets.captions_file(self.out), "--workers", "2", "--to", self.clip, *self.to)

    def sweep(self, space: str) -> list[str]:
        """Return the command of a trend."""
        changes = CHANGES | ({"optim.lr": self.runs.chosen("TeCoA", TOWER)} if SWEEPS[space] else {})
        if space == "train_size":  # which has sizes of its own, up to all images, and a warm-up for the smallest
            changes = {key: value for key, value in changes.items() if key not in ("data.n", "optim.warmup")} | {"optim.epochs": 1}
        words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
        scored = ["--sets", *SCORED, "--n", str(self.n), "--eps", *(f"{eps:g}" for eps in PROTOCOL.eps)]
        return script("sweep", space, "--model", self.clip, *words, *scored, *self.to)

    @property
    def few(self) -> int:
        """Images of each set where attacks are dear."""
        return max(8, self.n // 4)

    def ladder(self) -> Protocol:
        """Return the protocol of test-time defences."""
        return replace(protocols.named("ladder"), sets=SCORED, real=(), n=self.few)

    def multimodal(self) -> Protocol:
        """Return the protocol of attacks on prompts."""
        return replace(protocols.named("multimodal"), sets=SCORED, real=(), n=self.few)

    def bench(self) -> Bench:
        """Return what makes the rows of the ladder."""
        return Bench(self.out, int(cluster.total()[0]), self.clip, CHANGES | SHORT | dict(self.changes))


def script(name: str, *words: str) -> list[str]:
    """Return a command of pipelines/."""
    return [sys.executable, str(PIPELINES / f"{name}.py"), *words]
