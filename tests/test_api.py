"""The Python API: a few lines from a name to a robust accuracy, in one process, with the records that the commands would write."""

from pathlib import Path
from typing import Any

import pytest
import torch

import robustclip
from robustclip import names
from robustclip.__main__ import listing
from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.evaluation import computing, protocols
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.records.rows import content_sha256

NAMES = ("red", "green", "blue", "grey")


@pytest.fixture
def smoke(tmp_path: Path) -> dict[str, Any]:
    return {"protocol": "smoke", "out": str(tmp_path)}


def test_a_named_model_finds_its_finished_work(tiny_checkpoint: str, smoke: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], names.load_exactly
    monkeypatch.setattr(names, "load_exactly", lambda name, sha256: loaded.append(name) or load(name, sha256))
    result = robustclip.evaluate(tiny_checkpoint, **smoke)
    assert loaded == [tiny_checkpoint], "once for all cells"
    assert result.clean.n == 32
    assert result.clean.low <= result.clean.mean <= result.clean.high
    assert list(result.robust) == [2.0]
    assert result.robust[2.0].mean <= result.clean.mean
    monkeypatch.setattr(computing, "run_cascade", lambda *args: pytest.fail("computed again"))
    again = robustclip.evaluate(tiny_checkpoint, **smoke)
    assert again.records.equals(result.records)


def test_a_model_in_memory_gives_the_same_numbers_and_leaves_no_records(tiny_checkpoint: str, smoke: dict[str, Any]) -> None:
    named, loaded = (robustclip.evaluate(model, "shapes", **smoke) for model in (tiny_checkpoint, robustclip.load(tiny_checkpoint)))
    columns = ["image_id", "attack", "eps", "prediction", "correct", "linf", "loss_best", "first_success"]
    assert loaded.records.select(columns).equals(named.records.select(columns))
    assert (loaded.clean, loaded.robust) == (named.clean, named.robust)
    assert len(list((Path(smoke["out"]) / "records").iterdir())) == 1


def test_records_are_those_of_an_evaluator(tiny_checkpoint: str, smoke: dict[str, Any]) -> None:
    result = robustclip.evaluate(tiny_checkpoint, **smoke)
    resolved, model = protocols.resolve(protocols.named("smoke"), smoke["out"]), robustclip.load(tiny_checkpoint)
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for cell in resolved.cells("tiny", names.identity(tiny_checkpoint)):
        shared = computing.provenance(cell, resolved) | {"threads": 1}
        rows += [shared | row for row in computing.compute(model, cell, resolved)]
    torch.set_num_threads(before)
    assert content_sha256(result.records) == content_sha256(records.table(rows))


def test_parts_of_a_protocol_are_replaced(tiny_model: Model, smoke: dict[str, Any]) -> None:
    result = robustclip.evaluate(tiny_model, ["shapes"], attacks=["pgd-10", PGD(2)], eps=[1, 4], n=8, **smoke)
    assert list(result.robust) == [1.0, 4.0]
    assert result.clean.n == 8
    assert result.protocol["attacks"] == ["pgd-10", "pgd-2"]
    assert robustclip.evaluate(tiny_model, "shapes", eps=3, n=8, **smoke).protocol["eps"] == [3.0]


def test_images_of_ones_own(tiny_model: Model, pictures: Any) -> None:
    images, labels, _ = pictures(24)
    result = robustclip.evaluate(tiny_model, (images, labels), attacks=["pgd-10"], eps=[2, 8], class_names=NAMES)
    with torch.no_grad():
        right = tiny_model.classifier(NAMES, robustclip.api.TEMPLATES)(images).argmax(1) == labels
    assert result.clean.mean == pytest.approx(float(right.float().mean()))
    assert result.robust[8.0].mean <= result.robust[2.0].mean <= result.clean.mean
    with pytest.raises(UserError, match=r"give class_names="):
        robustclip.evaluate(tiny_model, (images, labels), attacks=["pgd-10"], eps=2)


def test_a_result_says_and_draws_itself(tiny_model: Model, pictures: Any, tmp_path: Path) -> None:
    result = robustclip.evaluate(tiny_model, pictures(8)[:2], attacks=["pgd-10"], eps=[2], class_names=NAMES)
    clean, robust, rest = str(result).splitlines()
    assert clean.startswith("clean ")
    assert robust.startswith("robust eps=2 ")
    assert rest == f"images; Linf; pgd-10; protocol {result.records['protocol_hash'][0].as_py()[:12]}, no checks were run"
    png = result.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == png
    assert png.startswith(b"\x89PNG")


def test_one_attack_by_name(tiny_model: Model, pictures: Any) -> None:
    images, labels, ids = pictures(8)
    classifier = tiny_model.classifier(NAMES, ("{}",))
    found = robustclip.attack("apgd-ce-20", classifier, images, labels, eps=4)
    assert 0 < float((found.images - images).abs().max()) <= 4 / 255 + 1e-6
    assert torch.equal(found.images, robustclip.attack("apgd-ce-20", classifier, images, labels, eps=4).images)
    assert float((robustclip.attack(PGD(3), classifier, images, labels, eps=40, norm="L2", ids=ids).images - images).norm()) > 0
    with pytest.raises(UserError, match="evaluate\\(\\) counts several"):
        robustclip.attack("autoattack", classifier, images, labels, eps=4)
    with pytest.raises(UserError, match="did you mean apgd-ce-20"):
        robustclip.attack("apgd-ce-21", classifier, images, labels, eps=4)


def test_fine_tuning_gives_a_model_that_is_saved_and_found(tiny_checkpoint: str, tmp_path: Path) -> None:
    settings = {"data__n": 64, "data__held_out": 16, "data__rendered": 128, "optim__epochs": 1}
    trained = robustclip.finetune(tiny_checkpoint, "shapes", "smoke", out=str(tmp_path), **settings)
    assert trained.sha256 != robustclip.load(tiny_checkpoint).sha256
    robustclip.save(trained, str(tmp_path / "mine"))
    assert robustclip.load(str(tmp_path / "mine")).sha256 == trained.sha256
    half = robustclip.load(f"interpolate:0.5:{tmp_path / 'mine'}")
    assert half.sha256 not in (trained.sha256, robustclip.load(tiny_checkpoint).sha256)
    with pytest.raises(UserError, match=r"unknown recipe key 'optim\.rate'"):
        robustclip.finetune(tiny_checkpoint, "shapes", "smoke", out=str(tmp_path), optim__rate=1)


def test_everything_there_is_has_a_line() -> None:
    lists = (robustclip.list_models, robustclip.list_recipes, robustclip.list_protocols, robustclip.list_sets, robustclip.list_attacks)
    known = [each() for each in lists]
    words = (("tiny-vit8", "rendered"), ("demo", "TeCoA"), ("fare-13", "13 sets"), ("typographic:SET", "written"), ("autoattack", "apgd-t"))
    for each, (name, word) in zip(known, words, strict=True):
        assert word in each[name]
        assert all(line and "\n" not in line for line in each.values())
    said = listing()
    for each in known:
        assert all(f"  {name} " in said for name in each)


def test_names_are_found_when_they_are_asked_for() -> None:
    assert set(robustclip.__all__) <= set(dir(robustclip))
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = robustclip.evalute
