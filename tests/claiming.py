"""A ledger in miniature, and what a study of it would have found: runs, records and findings that are made without Ray."""

import json
from pathlib import Path

import numpy as np

from robustclip import names as models
from robustclip.base import storage
from robustclip.evaluation import protocols
from robustclip.evaluation.alone import evaluate_named
from robustclip.evaluation.checks import CHECKS
from robustclip.models.checkpoints import save
from robustclip.records import findings
from robustclip.records.findings import Finding
from robustclip.records.survival import Survival
from robustclip.reproduction.measuring import Evaluated
from robustclip.reproduction.needs import Laid
from robustclip.training.alone import finetune_alone

EPS = 2.0
HAND = """# by hand

paper = "A paper"

[claims.falls]
says = "CLIP falls."
source = "Table 1"
published = "half"
study = "small"
parts = [{ terms = { "clip clean" = 1, "clip robust" = -1 }, above = 0.0, published = 50.0 }]

[claims.rises]
says = "CLIP rises."
source = "nowhere"
published = "none"
study = "small"
parts = [{ terms = { "clip robust" = 1, "clip clean" = -1 }, above = 0.0 }]

[claims.tiny]
says = "CLIP falls on few images."
source = "Table 1"
published = "half"
study = "tiny"
parts = [{ terms = { "clip clean" = 1, "clip robust" = -1 }, above = 0.0 }]

[claims.trained]
says = "Training leaves clean accuracy within 100 points."
source = "arithmetic"
published = "none"
study = "small"
parts = [{ terms = { "tecoa clean" = 1, "clip clean" = -1 }, above = -100.5 }]

[claims.nowhere]
says = "Something else."
source = "Table 2"
published = "none"
study = "other"
parts = [{ terms = { "clip clean" = 1 }, above = 0.0 }]

"""
STUDY = """
[studies.{name}]
protocol = "smoke"
n = {n}
recipes = {{ tecoa = "smoke" }}
models = {{ clip = "{{base}}" }}
columns = {{ robust = 2.0 }}
"""
FIXED = {"data.name": "shapes"}


def ledger(root: Path, model: str) -> Path:
    """Write a ledger of one paper in three worlds, of which the rendered one has two studies; return its folder."""
    folder = root / "claims"
    (folder / "worlds").mkdir(parents=True)
    (folder / "paper.toml").write_text(HAND)
    fixed = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in {**FIXED, "model": model}.items())
    studies = STUDY.format(name="small", n=60) + STUDY.format(name="tiny", n=8)
    (folder / "worlds" / "rendered.toml").write_text(f'title = "rendered world"\n[fixed]\n{fixed}{studies}')
    for name in ("photographs", "clip"):
        (folder / "worlds" / f"{name}.toml").write_text('not_yet = "nobody has any"\n')
    return folder


def train(laid: Laid) -> None:
    """Train a study's runs in this process, as `fit` would leave them."""
    for run in (run for runs in laid.runs.values() for run in runs if not run.ready):
        model, _ = finetune_alone(models.load(run.job.config.model), run.job.config, run.job.out)
        save(model, run.checkpoint)
        storage.write_json(storage.join(run.job.folder, "result.json"), {"checkpoint": run.checkpoint})


def attack(laid: Laid, fault: str = "") -> None:
    """Attack a study's models in this process, and write that they passed every check, but for one (`fault`) that they failed."""
    resolved = protocols.resolve(laid.protocol, laid.out)
    for name in laid.all_names(laid.wanted):
        evaluate_named(models.absolute(name), resolved, laid.out)
        made = [Finding(number, "made", "hard", number != fault, "planted" if number == fault else "") for number in CHECKS]
        sha256 = models.identity(name)
        said = {"baseline_sha256": models.identity(laid.base), "findings": findings.as_json(made)}
        storage.write_json(findings.path(laid.out, resolved.hash, sha256), said)


def survivors(robust: np.ndarray, clean: np.ndarray | None = None) -> dict[str, Survival]:
    """Return the outcomes of one set: right clean (default: all), and at EPS where `robust` says."""
    ids = np.array([f"{i:04d}" for i in range(len(robust))])
    clean = np.ones(len(robust), dtype=bool) if clean is None else clean
    return {"set": Survival(("pgd",), (EPS,), ids, clean, (clean & robust)[:, None, None])}


def evaluated(**roles: list[np.ndarray]) -> Evaluated:
    """Return a study's records from what stands of every image under attack, an array a seed of every role; all are checked."""
    runs = {role: [f"{role}-{i}" for i in range(len(each))] for role, each in roles.items()}
    outcomes = {name: survivors(flags) for role, each in roles.items() for name, flags in zip(runs[role], each, strict=True)}
    checks = {name: [Finding("1", "made", "hard", True, "")] for name in outcomes}
    resolved = protocols.Resolved(protocols.named("smoke"), {})
    return Evaluated(resolved, runs, {"robust": (outcomes, EPS), "clean": (outcomes, "clean_attacked")}, checks)
