"""Prompts learned before and prompts tuned at test time, each attacked by an adversary of every level: the table and what survives.

    python benchmarks/test_time.py [--out outputs] [--n 50] [--few 10] [--second]

Static rows: the embedded CLIP and the prompts of the demo recipes advvp, advvpt, advvlp, advmaple, advtp, apt (on the TeCoA model of the
demo recipe) and fap, all trained at the eps that attacks, as in the papers. Test-time rows, 16 views each: the ensemble of views, TPT,
R-TPT, TTC and DBD (its own 32 views) on CLIP, PromptAlign on clean MaPLe prompts, TAPT-V, -VLI and -VLJ on adversarial ones, aligned with
statistics through these and through clean ones. Everything that is missing is trained; the same command goes on where it stopped.
`--second` adds TAPT-VLI on a smaller ViT, which is pre-trained for it.

Protocol `ladder` (PGD-100 and DI at A0 to A2, PGD-20 at A3) meets --n images of each of four sets, `ladder-whole` (AutoAttack at A0 to A2,
A4, A5, A6 as well) --few of each; there the worst case of every image is of all levels.

Measured 2026-11-28 on two cores, protocol hashes 92e3b4faf8f7a23c and f8adb57032b54c00, 76 minutes in all: 15 to train, 8 for the smaller
ViT, 7 for `ladder`, 46 for `ladder-whole`; DBD was not there yet: not measured. Both tables and what they say are in docs/answers.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from tables import cell, trained, verdict

from robustclip import names as models
from robustclip.attacks.levels import GREY, Aimed
from robustclip.base import storage
from robustclip.base.errors import main
from robustclip.base.values import override
from robustclip.data import world
from robustclip.defenses import CleanCE
from robustclip.evaluation import protocols
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.protocols import Protocol, Resolved
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.names import written
from robustclip.records import survival
from robustclip.results import report
from robustclip.results.page import Page
from robustclip.runtime import cluster
from robustclip.runtime.cli import say_on_terminal
from robustclip.test_time import DBD, RTPT, TAPT, TPT, TTC, PromptAlign, TestTime, ViewEnsemble
from robustclip.training.config import Config
from robustclip.training.pretraining import Pretraining, pretrain
from robustclip.training.recipes import named
from robustclip.training.statistics import Images, statistics

CLIP = "tiny-vit8"
VIEWS = {"views": 16, "keep": 0.25}
STATIC = ("demo-advvp", "demo-advvpt", "demo-advvlp", "demo-advmaple", "demo-advtp", "demo-fap")
TUNED = {"TAPT-V": "demo-advvpt", "TAPT-VLI": "demo-advvlp", "TAPT-VLJ": "demo-advmaple"}
EPS = 2.0  # in 1/255, of training too; the protocols' own
SMALLER = {"width": 96, "layers": 2}  # of the second visual tower; the first has 128 and 3


@dataclass(frozen=True)
class Bench:
    """Where everything lies; which CLIP stands under all rows, and what its trainings change of the demo recipes."""

    out: str
    model: str = CLIP
    changes: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, name: str) -> Config:
        """Return the config of a demo recipe on this CLIP."""
        return override(named(name).config, {"model": self.model, **self.changes})

    def trained(self, *configs: Config) -> list[str]:
        """Return the checkpoints of configs, training those that are missing, as many at once as fit."""
        found = trained([override(config, {"threat.image.eps": EPS, "validation.eps": EPS}) for config in configs], self.out)
        return [each["checkpoint"] for each in found]

    def moments(self, checkpoint: str, config: Config) -> str:
        """Return the file of a checkpoint's statistics over its own training images, made if need be."""
        path = storage.join(storage.parent_of(checkpoint), "moments.safetensors")
        if not storage.exists(path):
            data = config.data
            workers, gpus = cluster.fitting_actors()
            statistics(checkpoint, Images(data.name, data.n, rendered=data.rendered), self.out, workers=workers, gpus=gpus).write(path)
        return path

    def tapt(self, recipe: str, model: str = "") -> str:
        """Return the name of TAPT on a recipe's prompts, aligned with theirs and with clean ones."""
        adversarial = override(self.recipe(recipe), {"model": model or self.model})
        clean = override(adversarial, {"defense": CleanCE()})
        start, other = self.trained(adversarial, clean)
        files = {"adversarial": self.moments(start, adversarial), "clean": self.moments(other, clean)}
        return written(TAPT(**VIEWS, lr=adversarial.optim.lr / 10, **files), start)

    def rows(self) -> dict[str, str]:
        """Return what every row of the table is called -> the model's name."""
        clean = {recipe: override(self.recipe(recipe), {"defense": CleanCE()}) for recipe in TUNED.values()}
        robust, *others = self.trained(*(self.recipe(recipe) for recipe in ("demo", *STATIC)), *clean.values())
        static, maple = others[: len(STATIC)], dict(zip(clean, others[len(STATIC) :], strict=True))["demo-advmaple"]
        found = {"CLIP": self.model} | {recipe.removeprefix("demo-"): checkpoint for recipe, checkpoint in zip(STATIC, static, strict=True)}
        (apt,) = self.trained(override(self.recipe("demo-apt"), {"model": robust}))
        found |= {"TeCoA": robust, "apt on TeCoA": apt}
        plain: dict[str, TestTime] = {"views": ViewEnsemble(**VIEWS), "TPT": TPT(**VIEWS), "R-TPT": RTPT(**VIEWS), "TTC": TTC()}
        plain["DBD"] = DBD()
        found |= {title: written(settings, self.model) for title, settings in plain.items()}
        found["PromptAlign"] = written(PromptAlign(**VIEWS, clean=self.moments(maple, clean["demo-advmaple"])), maple)
        return found | {title: self.tapt(recipe) for title, recipe in TUNED.items()}

    def second(self) -> dict[str, str]:
        """Return the rows of a smaller ViT, pre-trained here if need be."""
        folder = storage.join(self.out, "smaller-vit")
        if not storage.exists(storage.join(folder, "config.json")):
            model = models.load(CLIP)
            config = dict(model.open_clip_config)
            config["model_cfg"] = config["model_cfg"] | {"vision_cfg": config["model_cfg"]["vision_cfg"] | SMALLER}
            recipe = replace(Pretraining(), steps=1500, pairs=60_000)

            def say(step: int, loss: float, clip: object) -> None:
                if step % 100 == 0:
                    print(f"the smaller ViT: step {step} of {recipe.steps}, loss {loss:.2f}", flush=True)

            clip = pretrain(config, recipe, world.corpus(recipe.pairs, recipe.seed), say)
            save(Model("smaller-vit", clip.eval(), model.tokenizer, config, {}), folder, tokenizer=model.card["tokenizer"])
        tapt = self.tapt("demo-advvlp", folder)  # trains clean prompts beside the adversarial ones
        (prompts,) = self.trained(override(named("demo-advvlp").config, {"model": folder}))
        return {"smaller CLIP": folder, "smaller advvlp": prompts, "smaller TAPT-VLI": tapt}

    def attacked(self, rows: dict[str, str], protocol: Protocol) -> str:
        """Return the tables of a protocol as Markdown, and write its page."""
        resolved = protocols.resolve(replace(protocol, eps=(EPS,)), self.out)
        names, (actors, gpus) = list(rows.values()), cluster.fitting_actors()
        table = evaluate(names, resolved, self.out, actors=actors, gpus=gpus, on_progress=lambda done: print(done, flush=True))
        titles = {models.display_name(name): title for title, name in rows.items()}
        built = report.from_records(table, resolved.describe(), list(titles), titles)
        page = Page(built).write(storage.join(self.out, "reports", resolved.hash))
        return f"{Page(built).markdown()}\nreport {page}\n{survives(table, resolved, rows)}"


def survives(table: pa.Table, resolved: Resolved, rows: dict[str, str]) -> str:
    """Return, for every row, what its grey-box attackers leave, what all of them together do, and how far that is above its plain CLIP."""
    attacks, (eps,) = resolved.protocol.attacks, resolved.protocol.eps
    grey = [attack.name for attack in attacks if isinstance(attack, Aimed) and attack.level in GREY]
    seen = {"grey": survival.alone(table, grey, eps, resolved.skips)}
    seen["all"] = survival.alone(table, [attack.name for attack in attacks], eps, resolved.skips)
    classes = resolved.classes
    said = ["| model | grey-box attackers leave | all attackers leave | above plain CLIP under all |", "|---|---|---|---|"]
    for title, name in rows.items():
        under = {who: [each[models.display_name(name)]] for who, each in seen.items()}
        plain = [seen["all"][models.display_name(rows["smaller CLIP" if title.startswith("smaller") else "CLIP"])]]
        above = verdict({"this": (1.0, under["all"]), "plain CLIP": (-1.0, plain)}, eps)
        said.append(f"| {title} | {cell(under['grey'], eps, classes)} | {cell(under['all'], eps, classes)} | {above} |")
    return "\n".join(said)


def run(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50, help="images of each set under ladder (default: %(default)s)")
    parser.add_argument("--few", type=int, default=10, help="images of each set under ladder-whole (default: %(default)s)")
    parser.add_argument("--second", action="store_true", help="add the smaller ViT")
    parser.add_argument("--out", default="outputs")
    args = parser.parse_args(words)
    say_on_terminal()
    cluster.connect()
    bench = Bench(storage.resolve(args.out))
    rows = bench.rows() | (bench.second() if args.second else {})
    for name, n in (("ladder", args.n), ("ladder-whole", args.few)):
        print(bench.attacked(rows, replace(protocols.named(name), n=n)), flush=True)


if __name__ == "__main__":
    main(run)
