"""The whole road on the smallest recipe: Tune -> Train -> evaluator -> MLflow -> report, and the same command again."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sweeping
from ray import tune
from sweeping import Swept

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.values import override
from robustclip.evaluation import protocols
from robustclip.models.dress import PixelPrompt
from robustclip.runtime.logged import located
from robustclip.runtime.tracking import KEY_TAG, PARENT_TAG, Tracker
from robustclip.sweeps import tuning
from robustclip.sweeps.report import examples, publish
from robustclip.sweeps.spaces import Axis, first_config
from robustclip.training.config import Config
from robustclip.training.recipes import RECIPES


@pytest.fixture
def config(tiny_checkpoint: str) -> Config:
    return override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"})


def test_a_sweep_runs_fails_honestly_and_continues(swept: Swept) -> None:
    """Two trials, one impossible (a negative eps): its reason is kept, and a second run adds nothing."""
    outcome, text, out = swept.outcome, swept.text, swept.out
    assert [trial.sample["threat.image.eps"] for trial in outcome.trials if trial.result] == [2.0]
    (failed,) = outcome.failures
    assert "not negative" in (failed.failure or "")
    assert outcome.chosen is not None
    assert outcome.chosen.label in text
    for place in ("report.html", "records", "model", "mlflow ui"):
        assert place in text
    written = {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{out}/records")}
    again = sweeping.swept(swept.config, out, swept.tracker)
    assert again.run == swept.run
    assert {path: Path(path).stat().st_mtime_ns for path in storage.list_files(f"{out}/records")} == written
    assert again.text.split("time:")[0] == text.split("time:")[0]
    check_mlflow(swept, {trial.key for trial in outcome.trials})


def check_mlflow(swept: Swept, keys: set[str]) -> None:
    """One parent and one child per trial after two runs, each child with params, one curve, per-set metrics, data sets and its model."""
    tracker, parent = swept.tracker, swept.outcome.parent.id
    runs = tracker.client.search_runs([tracker.experiment])
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent]
    assert len(runs) == len(children) + 1
    assert {run.data.tags[KEY_TAG] for run in children} == keys
    for child in children:
        if child.info.status == "FAILED":
            assert "not negative" in child.data.tags["robustclip.failure"]
            continue
        steps = [point.step for point in tracker.client.get_metric_history(child.info.run_id, "loss")]
        assert steps == sorted(set(steps)) == list(range(1, len(steps) + 1))
        assert child.data.params["optim.batch"] == "16"
        assert {"test/clean", "test/robust_2", "test/digits/clean", "test/shapes/robust_2", "val/robust"} <= set(child.data.metrics)
        assert len(tracker.client.get_metric_history(child.info.run_id, "test/clean")) == 1
        assert {a.path for a in tracker.client.list_artifacts(child.info.run_id)} == {"result.json", "records"}
        assert {each.dataset.name for each in child.inputs.dataset_inputs} == {"shapes/train", "shapes/test", "digits/test"}
        assert {"method": "TeCoA", "trainable": "VisualTower", "paper": "arXiv:2212.07016"}.items() <= {
            name.removeprefix("robustclip."): value for name, value in child.data.tags.items()
        }.items()
        assert models.identity(located(f"mlflow:{child.info.run_id}", swept.out)) == models.identity(swept.run["checkpoint"])
        assert sum(name.count("/") < 2 for name in child.data.metrics) <= 40  # in view; what is of one set has a prefix of its own
    assert {"table.md", "report.html", "clean_against_robust.png", "space.json", "protocol.json"} <= {
        a.path for a in tracker.client.list_artifacts(parent)
    }
    whole = tracker.client.get_run(parent).data
    assert {"test/clean", "test/robust_2", "val/robust"} <= set(whole.metrics)
    assert not [name for name in whole.metrics if name.count("/") > 1]
    assert "| model |" in whole.tags["mlflow.note.content"]


def test_the_picture_of_examples_is_drawn_with_an_attack_that_images_guide(tmp_path: Path, tiny_checkpoint: str) -> None:
    last = protocols.named("multimodal").attacks[-1]
    protocol = replace(protocols.named("multimodal"), sets=("shapes",), attacks=(replace(last, steps=1),), n=20)  # type: ignore[type-var]
    assert protocol.guided
    assert examples(tiny_checkpoint, protocols.resolve(protocol, str(tmp_path))).startswith(b"\x89PNG")


def run_space(sampled: dict[str, list[Any]], fixed: dict[str, Any], out: str, **options: bool) -> tuple[tuning.Outcome, str, list[Any]]:
    """Run a space on the smallest recipe; return how it ended, what it says and its MLflow children."""
    (first, *_), grids = sampled, {path: tune.grid_search(values) for path, values in sampled.items()}
    space, tracker = replace(sweeping.SPACE, space=grids, fixed=fixed, axis=Axis(first, "what varies", "categorical")), Tracker(out)
    config = first_config(space)
    protocol = protocols.named("smoke").changed(sets=("shapes",))
    outcome = tuning.sweep(space, config, protocol, out, tracker, **options)  # type: ignore[arg-type]
    text = publish(space, config, outcome, protocol, out, tracker, time.monotonic())
    runs = tracker.client.search_runs([tracker.experiment])
    assert list((Path(out) / "reports").glob("*/trend.png"))
    return outcome, text, [run for run in runs if run.data.tags.get(PARENT_TAG) == outcome.parent.id]


def varying(children: list[Any]) -> set[str]:
    """Return the parameters in which MLflow's children differ."""
    names = {name for child in children for name in child.data.params}
    return {name for name in names if len({child.data.params.get(name) for child in children}) > 1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_recipes_and_dataclasses_are_sampled_like_fields(ray_session: None, tmp_path: Path, tiny_checkpoint: str) -> None:
    fixed = {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 64, "data.held_out": 16, "data.rendered": 128}
    fixed |= {"optim.epochs": 2, "optim.batch": 16, "optim.micro_batch": 8, "validation.images": 16, "validation.steps": 2}
    sampled = {"trainable": [PixelPrompt("pad", 2)], "recipe": ["smoke", "demo-tokens"]}
    outcome, text, children = run_space(sampled, fixed, str(tmp_path), asha=True)
    assert len(children) == 2
    assert varying(children) == {"recipe"}
    assert {child.data.params["trainable"] for child in children} == {"PixelPrompt(shape='pad', size=2)"}
    assert [trial.result is None for trial in outcome.trials] == [False, False]
    rates = {}
    for trial in outcome.trials:
        card = storage.read_json(f"{trial.model}/config.json")["config"]
        assert card["trainable"] == {"type": "PixelPrompt", "shape": "pad", "size": 2}
        rates[trial.sample["recipe"]] = card["optim"]["lr"]
    assert rates == {name: RECIPES[name].config.optim.lr for name in ("smoke", "demo-tokens")}
    assert "Pareto set" in text or "not to be ranked" in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_interpolation_trains_once_and_is_validated_at_every_alpha(ray_session: None, tmp_path: Path, config: Config) -> None:
    fixed = {"model": config.model, "data.name": "shapes", "optim.lr": 1e-2}
    # --fresh starts what is trained from nothing once. A second start would have taken the earlier alphas' files away.
    outcome, text, children = run_space({"interpolation": [0.0, 0.5, 1.0]}, fixed, str(tmp_path), fresh=True)
    assert varying(children) == {"interpolation"}
    assert outcome.concurrent == 1
    assert len({trial.result["run"]["sha256"] for trial in outcome.trials if trial.result}) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(list(folder.glob("val-*.json"))) == 3
    assert outcome.chosen_by == "val/strong"
    assert "(chosen by val/strong)" in text
    assert "Spearman's rank correlation of val/robust (PGD) and val/strong (apgd-ce-50)" in text
    for child in children:
        assert {"val/clean", "val/robust", "val/strong", "test/clean"} <= set(child.data.metrics)
    trained, base = outcome.trials[2].result, outcome.trials[0].result
    assert trained is not None
    assert base is not None
    assert trained["val/robust"] == trained["run"]["metrics"]["val/robust"]  # alpha 1 is the model that training validated
