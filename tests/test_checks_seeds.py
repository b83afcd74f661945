"""Healthy pipelines on real weights: the embedded CLIP, a TeCoA model and a prompted one, five seeds each, as the evaluator checks them.

`pytest -q -s -m slow tests/test_checks_seeds.py` prints what the checks said of each.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from robustclip import names as models
from robustclip.base.values import override, to_json
from robustclip.data.plan import read_unit
from robustclip.evaluation import computing, probing, protocols
from robustclip.evaluation.checks import CHECKS, run_checks
from robustclip.models import checkpoints
from robustclip.records import rows as records
from robustclip.records.findings import failed, reasons
from robustclip.training.config import Config
from robustclip.training.job import prepare
from robustclip.training.learner import Learner
from robustclip.training.recipes import RECIPES

BASE, SEEDS = "tiny-vit8", range(5)
RECIPE_OF = {"TeCoA": "demo", "prompted": "demo-tokens"}


def trained(config: Config, folder: Path) -> str:
    """Return the checkpoint of a short run in this process: 50 steps of 32 images."""
    job = prepare(override(config, {"data.n": 1600, "data.rendered": 2048, "optim.epochs": 1}), str(folder))
    learner = Learner(job.config, models.load(BASE), job.card.class_names, job.card.templates, job.plan.steps)
    for step in range(job.plan.steps):
        unit = read_unit(job.plan, {"step": step, "unit": 0}, job.size)
        learner.accumulate(unit["pixels"], torch.as_tensor(unit["label"]), [str(key) for key in unit["key"].tolist()])
        learner.update()
    card = {"run": job.key, "trainable": to_json(config.trainable), "class_names": list(job.card.class_names)}
    checkpoints.save(learner.model, str(folder / "model"), **card, templates=list(job.card.templates))
    return str(folder / "model")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what a model is -> its name for `load`."""
    torch.set_num_threads(1)
    return {"CLIP": BASE} | {title: trained(RECIPES[recipe].config, tmp_path_factory.mktemp(title)) for title, recipe in RECIPE_OF.items()}


def rows_of(name: str, resolved: protocols.Resolved) -> pa.Table:
    """Return the records of a model as a worker writes them."""
    model, rows = models.load(name), []
    for cell in resolved.cells(models.display_name(name), models.identity(name)):
        rows += [computing.provenance(cell, resolved) | row for row in computing.compute(model, cell, resolved)]
    return records.table(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_pipelines_raise_no_hard_alarm(seed: int, names: dict[str, str], tmp_path: Path) -> None:
    """Another seed means other images as well as another random start of every attack."""
    demo = protocols.named("demo")
    protocol = replace(
        demo, name=f"healthy {seed}", sets=("shapes", "letters", "digits"), eps=(2.0,), n=24, seed=seed, render_seed=100 + seed
    )
    resolved = protocols.resolve(protocol, str(tmp_path))
    tables = {name: rows_of(name, resolved) for name in names.values()}
    for title, name in names.items():
        table = tables[BASE] if name == BASE else pa.concat_tables([tables[BASE], tables[name]])
        found = run_checks(probing.probe(name, BASE, resolved, table))
        warned, alarms = (failed(found, level) for level in ("warning", "hard"))
        print(f"{title:9} seed {seed}: hard false alarms {len(alarms)}, warnings {len(warned)} {reasons(warned)[:150]}")
        assert [finding.number for finding in found] == list(CHECKS)
        assert reasons(alarms) == ""
