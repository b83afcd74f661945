"""What the pieces of benchmarks/photographs.py share: where everything lies, what is scored how, and the commands that they give."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import photo_sets
import pyarrow as pa
from photo_runs import CHANGES, EPS, SAFT, SHORT, TOWER, Runs
from photo_sets import SCORED
from tables import finished
from test_time import Bench

from robustclip.attacks import APGD
from robustclip.base import storage
from robustclip.data.captions import read_captions
from robustclip.evaluation import protocols
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.probing import check
from robustclip.evaluation.protocols import Protocol, Resolved
from robustclip.evaluation.rules import SetRule
from robustclip.models.class_texts import Descriptions
from robustclip.records import survival
from robustclip.records.findings import summary
from robustclip.records.survival import Outcomes
from robustclip.runtime import cluster

say = partial(print, flush=True)
PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
INSIDE, DIGITS = "tiny-tuned", "digits"
DESCRIBED = ("tiny-unseen", "tiny-rest")  # scored sets whose classes have descriptions
SHIFTED = ("TeCoA", SAFT)  # towers whose prompts shift: trained by names, trained by descriptions
PROTOCOL = Protocol("photographs", SCORED, (APGD(20),), (1.0, EPS), n=80)
# Trends, by the space that asks: whether the rate that was chosen for TeCoA goes in, or the space and its recipes have their own.
SWEEPS = {"epsilon": True, "interpolation": True, "trainable": False, "first_blocks": False, "train_size": False}


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

    def records(self, names: Sequence[str], resolved: Resolved) -> pa.Table:
        """Return the records of models, attacking what has none yet."""
        return evaluate(names, resolved, self.out, **share(), on_progress=say)

    def outcomes(self, names: Sequence[str], protocol: Protocol) -> dict[str, Outcomes]:
        """Return what became of every image under models, by display name."""
        resolved = protocols.resolve(protocol, self.out)
        return survival.outcomes_of(self.records(names, resolved), resolved.describe())

    def stated(self, protocol: Protocol) -> str:
        """Return what a number of a protocol must stand beside: its hash, and how many images of which sets."""
        resolved = protocols.resolve(protocol, self.out)
        sets = ", ".join(f"{name} n = {len(each.ids):,}" for name, each in resolved.sets.items())
        attacked = f", of which {protocol.attacked} each attacked" if protocol.attacked else ""
        return f"protocol {protocol.name}, hash {resolved.hash}: {sets}{attacked}"

    def checked(self, names: Sequence[str], protocol: Protocol) -> str:
        """Return what the checks found on models beside the CLIP, a line for each that says something of its own."""
        resolved = protocols.resolve(protocol, self.out)
        table = self.records([self.clip, *names], resolved)
        found = check(names, self.clip, resolved, table, self.out, **share(), on_progress=say)
        said: dict[str, list[str]] = defaultdict(list)
        for name, findings in found.items():
            said[summary(findings)].append(name)
        return "\n".join(f"{', '.join(each)}: {line}" for line, each in said.items())

    @property
    def known(self) -> dict[str, Protocol]:
        """How what the CLIP knows is asked, by the texts: clean on all images, some of them attacked; described classes by that too."""
        said = Descriptions.said(read_captions(photo_sets.captions_file(self.out)))
        by_name = replace(PROTOCOL, sets=(*SCORED, INSIDE, DIGITS), n=None, attacked=self.n * 4)
        described = replace(by_name, sets=("tiny-unseen",), rules=(SetRule("tiny-unseen", templates=said),))
        return {"names": by_name, "descriptions": described}

    @property
    def to(self) -> list[str]:
        """The option that says where results go."""
        return ["--out", self.out]

    def pretraining(self) -> list[str]:
        """Return the command that makes the CLIP."""
        return script("pretrain", "photos", "--captions", photo_sets.captions_file(self.out), "--workers", "2", "--to", self.clip, *self.to)

    def trend(self, space: str, rate: float) -> dict[str, Any]:
        """Return what a trend changes of its space, the rate where its space has none of its own."""
        changes = CHANGES | ({"optim.lr": rate} if SWEEPS[space] else {})
        if space == "train_size":  # its sizes go up to all images; one a class are three steps an epoch, half of which the warm-up leaves
            changes = {key: value for key, value in changes.items() if key != "data.n"} | {"optim.warmup": 3}
        return changes

    def sweep(self, space: str) -> list[str]:
        """Return the command of a trend."""
        changes = self.trend(space, self.runs.chosen("TeCoA", TOWER) if SWEEPS[space] else 0.0)
        words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
        return script("sweep", space, "--model", self.clip, *words, *self.scored(SCORED), *self.to)

    def scored(self, sets: Sequence[str]) -> list[str]:
        """Return the options that say on which images of some sets, and how far, a command attacks."""
        return ["--sets", *sets, "--n", str(self.n), "--eps", *(f"{eps:g}" for eps in PROTOCOL.eps)]

    def shift(self) -> list[str]:
        """Return the command that attacks under descriptions and scores under names; raises UserError for towers that are not there."""
        configs = [config for method in SHIFTED for config in self.runs.final(method, TOWER, self.seeds)]
        towers = [finished(config, self.out, "python benchmarks/photographs.py tower") for config in configs]
        texts = ["--independent", "--shift", photo_sets.captions_file(self.out)]
        return script("evaluate", *towers, "--attacks", PROTOCOL.attacks[0].name, *self.scored(DESCRIBED), *texts, *self.to)

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
        return Bench(self.out, self.clip, CHANGES | SHORT | dict(self.changes))


def share() -> dict[str, Any]:
    """Return how many evaluators fit at once, and what each takes of a GPU."""
    actors, gpus = cluster.fitting_actors()
    return {"actors": actors, "gpus": gpus}


def script(name: str, *words: str) -> list[str]:
    """Return a command of pipelines/."""
    return [sys.executable, str(PIPELINES / f"{name}.py"), *words]
