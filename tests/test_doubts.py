"""What is hardly meant is said: eps in other units, wherever it is given; images of a step that is not finite by the names users know."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from robustclip import api
from robustclip.base.values import override
from robustclip.data.datasets import ensure_set
from robustclip.evaluation import probing, protocols
from robustclip.evaluation.checks import CHECKS
from robustclip.records import findings
from robustclip.training import alone, job
from robustclip.training.gradients import NotFinite
from robustclip.training.recipes import RECIPES


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, "robustclip")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("eps", "doubted"), [((0.0157,), 1), ((1.0, 2.0), 0), ((0.01, 2.0, 100.0), 2)])
def test_a_protocol_in_other_units_is_doubted(eps, doubted, tmp_path, warned):
    protocols.resolve(replace(protocols.named("smoke"), eps=eps), str(tmp_path))
    assert [said.startswith("protocol smoke: eps is ") for said in warned()] == [True] * doubted


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"threat.image.eps": 4 / 255}, ["threat.image"]),
        ({"threat.image.eps": 0.5, "threat.image.norm": "L2"}, ["threat.image"]),
        ({"validation.eps": 4 / 255}, ["validation"]),
        ({"threat.image.eps": 0.0}, []),
        ({"threat.image": None}, []),
    ],
)
def test_a_recipe_in_other_units_is_doubted(changes, who, tmp_path, warned):
    config = override(RECIPES["smoke"].config, {"model": "tiny-vit8", **changes})
    job.prepare(config, str(tmp_path))
    assert [said.partition(": eps is ")[0] for said in warned()] == who


def test_given_images_in_other_units_are_doubted(tiny_model, pictures, warned):
    images, labels, _ = pictures(4)
    names = ("red", "green", "blue", "grey")
    api.evaluate(tiny_model, (images, labels), attacks=["pgd-10"], eps=0.0157, class_names=names)
    assert len(warned()) == 1


def test_a_step_that_is_not_finite_names_its_images_as_users_know_them(tiny_model, tmp_path, monkeypatch):
    config = override(RECIPES["smoke"].config, {"data.name": "shapes"})
    known = set(ensure_set_ids(config, str(tmp_path)))
    monkeypatch.setattr(torch, "isfinite", lambda tensor: torch.zeros_like(tensor, dtype=torch.bool))
    with pytest.raises(NotFinite, match=r"^step 1: the loss or a gradient is not finite; .*: shapes/train/\d{6}, ") as stopped:
        alone.finetune_alone(tiny_model, config, str(tmp_path))
    assert set(stopped.value.ids) <= known
    assert len(stopped.value.ids) == config.optim.batch


def ensure_set_ids(config, out):
    """Return the ids of a config's set."""
    from robustclip.data.index import scan

    card = ensure_set(out, config.data.name, {"train": config.data.rendered}, config.data.render_seed)
    return scan(card.folder, card, "train").id.tolist()


def test_findings_of_fewer_checks_than_there_are_are_made_again(tmp_path):
    resolved = protocols.resolve(protocols.named("smoke"), str(tmp_path))
    sha256 = probing.models.identity("tiny-vit8")
    path = tmp_path / "checks" / findings.path("", resolved.hash, sha256).rpartition("/")[2]
    path.parent.mkdir()
    for numbers, stored in ((list(CHECKS), True), (list(CHECKS)[:-1], False)):
        path.write_text(json.dumps({"baseline_sha256": sha256, "findings": [{"number": number} for number in numbers]}))
        assert probing._stored("tiny-vit8", "tiny-vit8", resolved, str(tmp_path)) is stored
