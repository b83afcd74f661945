"""The trainings of benchmarks/photographs.py: a config for each method, on the tower or on deep prompts, and the rate chosen for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from photo_sets import described
from tables import trained

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.defenses import CleanCE, Mix
from robustclip.models.dress import TokenPrompt
from robustclip.training.config import Config
from robustclip.training.recipes import named

SAFT = "SAFT"  # TeCoA that attacks and trains by the mean of a class's descriptions
METHODS = {
    "CE": "demo-ce",
    "Adv.": "demo-adv",
    "CoAdv.": "demo-coadv",
    "ImgCoAdv.": "demo-imgcoadv",
    "TeCoA": "demo",
    "TeCoA, pseudo-labels": "demo-pseudo",
    SAFT: "demo",
    "FARE": "demo-fare",
    "PMG-AFT": "demo-pmg",
    "TeCoA + FARE": "demo",
    "MMCoA": "demo-mmcoa",
}
PROBE, PROBED = "LP(CE)", ("cifar10", "clothing")  # a linear probe of each set that has images to train on, no zero-shot classifier
TOWER, PROMPT = "tower", "prompt"
ROWS = [*((method, part) for part in (TOWER, PROMPT) for method in METHODS), *((PROBE, name) for name in PROBED)]
PROMPTED = ("TeCoA", "FARE", "TeCoA + FARE", "MMCoA")  # towers whose prompts are attacked
RATES = {TOWER: (3e-4, 1e-3, 3e-3), PROMPT: (3e-3, 1e-2, 3e-2), PROBE: (1e-3, 1e-2, 1e-1)}
EPS = 2.0  # in 1/255, of training
# What every training changes of its recipe. The warm-up is shorter, for the rates are compared in 75 steps.
CHANGES: dict[str, Any] = {
    "data.name": "tiny-tuned",
    "data.n": 4000,
    "data.held_out": 1000,
    "threat.image.eps": EPS,
    "validation.eps": EPS,
    "validation.images": 64,
    "optim.epochs": 2,
    "optim.warmup": 20,
}
SHORT = {"data.n": 2400, "optim.epochs": 1}


@dataclass(frozen=True)
class Runs:
    """The trainings of one CLIP, all under `out`; `changes` come on top of CHANGES."""

    clip: str
    out: str
    changes: tuple[tuple[str, Any], ...] = ()

    def config(self, method: str, part: str, rate: float, seed: int = 0, **more: Any) -> Config:
        """Return the config of a method on the tower or on a prompt; of PROBE the part is the set that is probed."""
        recipe = named("demo-lp" if method == PROBE else METHODS[method]).config
        if method == "TeCoA + FARE":
            recipe = replace(recipe, defense=Mix())
        if method == SAFT:
            recipe = replace(recipe, templates=described(self.out, CHANGES["data.name"]))
        if part == PROMPT:
            recipe = replace(recipe, trainable=TokenPrompt(tokens=8, deep=True), optim=replace(recipe.optim, weight_decay=0.0))
        changes = {**CHANGES, "model": self.clip, "optim.lr": rate, "seed": seed, **more}
        if method == PROBE:
            changes |= {"data.name": part, "data.n": min(changes["data.n"], 2400), "data.held_out": 500}  # clothing has 3,068
        return override(recipe, changes | dict(self.changes))

    def short(self, method: str, part: str) -> list[Config]:
        """Return the short trainings of a method that its rate is chosen by, at every rate of the grid."""
        return [self.config(method, part, rate, **SHORT) for rate in RATES[PROBE if method == PROBE else part]]

    def choose(self, rows: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Return "method, part" -> the rate whose short training scored best on held-out images, and keep them in a file."""
        configs = [(row, config) for row in rows for config in self.short(*row)]
        results = trained([config for _, config in configs], self.out)
        best: dict[str, tuple[float, float]] = {}
        for (row, config), result in zip(configs, results, strict=True):
            title, found = ", ".join(row), (score(config, result["metrics"]), -config.optim.lr)
            best[title] = max(best.get(title, found), found)  # of equals the smaller rate
        chosen = {title: -rate for title, (_, rate) in best.items()}
        storage.write_json(self.rates_file, chosen)
        return chosen

    @property
    def rates_file(self) -> str:
        """Where the chosen rates are kept."""
        return storage.join(self.out, "rates.json")

    def chosen(self, method: str, part: str) -> float:
        """Return the rate of a method; raises UserError where none was chosen yet."""
        rates = storage.read_json(self.rates_file) if storage.exists(self.rates_file) else {}
        if f"{method}, {part}" not in rates:
            raise UserError(f"no rate was chosen for {method} on {part}: run the piece `rates` first")
        return rates[f"{method}, {part}"]

    def final(self, method: str, part: str, seeds: Sequence[int]) -> list[Config]:
        """Return the trainings of a method at its chosen rate, one for each seed."""
        return [self.config(method, part, self.chosen(method, part), seed) for seed in seeds]


def score(config: Config, metrics: dict[str, float]) -> float:
    """Return what rates compete by, on held-out images of the fine-tuning classes: clean plus robust accuracy, clean where none attacks."""
    return metrics["val/clean"] + (0.0 if isinstance(config.defense, CleanCE) else metrics["val/strong"])
