"""What goes wrong in the middle of an evaluation costs its own cell or its own image, says so, and leaves every finished record whole."""

import json
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn
from toys import LISTED, others, short

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.evaluation import computing, protocols
from robustclip.evaluation import evaluator as evaluation
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.protocols import Protocol
from robustclip.evaluation.wanted import Wanted
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.records.rows import NO_CLASS
from robustclip.results import report
from robustclip.results.page import Page

NAMES, TEMPLATES, N = ("red", "green", "blue", "grey"), ("a photo of a {}.",), 6
BAD = 2  # the image that the poisoned things below are about


@pytest.fixture(autouse=True, scope="module")
def _by_value() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import the tests


class Poisoned(nn.Module):
    """A classifier whose logits are not finite near one image: everywhere there, or everywhere but at the image itself."""

    def __init__(self, classifier: nn.Module, image: Tensor, clean: bool, value: float = float("nan")):
        super().__init__()
        self.classifier, self.image, self.clean, self.value = classifier, image, clean, value
        self.surrogates = getattr(classifier, "surrogates", None)

    def forward(self, images: Tensor) -> Tensor:
        logits, away = self.classifier(images), (images.detach() - self.image).abs().flatten(1).amax(1)
        poisoned = (away < 0.1) & (self.clean | (away > 0))
        return logits.masked_fill(poisoned[:, None] & (torch.arange(logits.shape[1]) == 1), self.value)


Task = Callable[..., tuple[nn.Module, Tensor, Tensor, list[str]]]


@pytest.fixture
def task(tiny_model: Model, pictures: Callable) -> Task:
    """Return a function that gives a poisoned classifier, images it gets right but for the poison, labels and ids; BAD has `label`."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(N)
    with torch.no_grad():
        y = classifier(x).argmax(1)

    def make(label: int, clean: bool, value: float = float("nan")) -> tuple[nn.Module, Tensor, Tensor, list[str]]:
        classifier.class_embeddings = classifier.class_embeddings.roll(label - int(y[BAD]), 0)
        classifier.surrogates = others(classifier, pictures)
        return Poisoned(classifier, x[BAD], clean, value), x, (y + label - y[BAD]) % len(NAMES), ids

    return make


@pytest.mark.parametrize("label", [0, 1, 2])  # argmax takes a NaN for the highest logit: class 1 would be right, the others wrong
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_clean_logits_that_are_not_finite_are_an_error_with_the_image(task: Task, label: int, value: float) -> None:
    protocol = Protocol("toy", ("toy",), (PGD(2),), (1.0,), micro_batch=4)
    with pytest.raises(UserError, match=rf"image 'picture/0/{BAD}'.*not finite \(1 such images of {N}\)"):
        run_cascade(*task(label, True, value), protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [1, 2])
@pytest.mark.parametrize("name", [each for each in LISTED if "torchattacks" not in each.id])
def test_logits_that_are_not_finite_under_attack_are_told_apart(task: Task, name: str, label: int) -> None:
    attack = short(name, len(NAMES))
    protocol = Protocol("toy", ("toy",), (attack,), (1.0,), micro_batch=4)
    classifier, x, y, ids = task(label, False)
    rows = run_cascade(classifier, x, y, ids, protocol)  # type: ignore[arg-type]
    healthy = run_cascade(classifier.classifier, x, y, ids, protocol)  # type: ignore[arg-type]
    (flagged,) = (row for row in rows if row["prediction"] == NO_CLASS)
    assert (flagged["image_id"], flagged["correct"], flagged["confidence"]) == (ids[BAD], False, 0.0)

    def others(rows: list[dict]) -> list[dict]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if row["image_id"] != ids[BAD]]

    assert others(rows) == others(healthy)


def test_a_report_counts_them() -> None:
    facts = {"model": "m", "model_sha256": "s", "dataset": "toy", "protocol_hash": "p", "label": 1, "clean_prediction": 1}
    rows = [facts | {"image_id": i, "attack": "clean", "eps": 0.0, "prediction": 1, "correct": True} for i in "abcd"]
    seen = {"a": 1, "b": 0, "c": NO_CLASS, "d": NO_CLASS}
    rows += [facts | {"image_id": i, "attack": "pgd-2", "eps": 1.0, "prediction": p, "correct": p == 1} for i, p in seen.items()]
    told = {"name": "toy", "attacks": ["pgd-2"], "eps": [1.0], "sets": {"toy": {"class_names": ["a", "b"], "real": True}}}
    page = Page(report.from_records(records.table(rows), told)).markdown()
    assert "2 images of toy count as broken because the logits of m were not finite under attack" in page
    assert "25.0 [" in page
    sound = [row | ({"prediction": 0} if row["prediction"] == NO_CLASS else {}) for row in rows]
    assert "not finite" not in Page(report.from_records(records.table(sound), told)).markdown()


# --- on Ray: three cells, two of them in trouble --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NaNPixel(protocols.Resolved):
    """A protocol that reads one image of `shapes` with a pixel that is no number."""

    def read(self, name: str, rows: np.ndarray, model_size: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        ids, pixels, labels = super().read(name, rows, model_size)
        pixels = pixels.astype(np.float32)
        if name == "shapes":
            pixels[BAD, 0, 0, 0] = np.nan
        return ids, pixels, labels


class FullDisk(evaluation.Worker):
    """A worker on whose disk a file of `letters` may not grow over 1,000 bytes."""

    def run(self, cell: protocols.Cell, model_name: str) -> str:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if cell.dataset == "letters":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return super().run(cell, model_name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def resolved(tmp_path: Path) -> protocols.Resolved:
    return protocols.resolve(replace(protocols.named("smoke"), sets=("shapes", "letters", "digits")), str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_line_says_what_happened_and_only_those_cells_are_left_to_do(
    ray_session: None, tmp_path: Path, resolved: protocols.Resolved, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "Worker", FullDisk)
    with pytest.raises(UserError, match="2 of 3 cells failed, the others are kept: ") as failed:
        evaluation.evaluate([tiny_checkpoint], NaNPixel(resolved.protocol, resolved.sets), str(tmp_path), actors=1, cpus=0.5)
    monkeypatch.undo()
    said = str(failed.value)
    assert "\n" not in said
    assert re.search(r"shapes under tiny[^;]*: image 'shapes/test/[0-9]+': the model's logits of the clean image are not finite", said)
    assert re.search(r"letters under tiny[^;]*parquet: no room to write it .File too large.", said)
    *bad, good = resolved.cells(models.display_name(tiny_checkpoint), models.identity(tiny_checkpoint))
    folder = tmp_path / "records"
    assert [path.name for path in folder.iterdir()] == [f"{good.key}.parquet"]
    kept = records.read(str(folder), good.key)
    assert [cell.key for cell in Wanted([tiny_checkpoint], resolved, str(tmp_path)).missing] == [cell.key for cell in bad]
    for cell in bad:
        rows = computing.compute(models.load(tiny_checkpoint), cell, resolved)
        records.write(str(folder), cell.key, records.table([computing.provenance(cell, resolved) | row for row in rows]))
    table = evaluation.evaluate([tiny_checkpoint], resolved, str(tmp_path), actors=1, on_progress=lambda _: pytest.fail("computed again"))
    assert records.read(str(folder), good.key) == kept
    assert sum(len(records.read(str(folder), cell.key)) for cell in (*bad, good)) == len(table)


# --- a set that is damaged after it was evaluated -------------------------------------------------------------------------------------


def cut_in_half(folder: Path, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def lose_classes(folder: Path, shard: Path) -> None:
    card = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(card | {"class_names": card["class_names"][:3]}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut_in_half, "test-00000.parquet: not a readable Parquet file"), (lose_classes, "label [0-9]+ is outside the 3 classes")],
)
def test_a_set_that_is_damaged_later_costs_no_finished_record(
    tmp_path: Path, resolved: protocols.Resolved, tiny_checkpoint: str, damage: Callable[[Path, Path], None], said: str
) -> None:
    folder, model = str(tmp_path / "records"), models.load(tiny_checkpoint)
    cells = resolved.cells(models.display_name(tiny_checkpoint), models.identity(tiny_checkpoint))
    for cell in cells:
        rows = computing.compute(model, cell, resolved)
        records.write(folder, cell.key, records.table([computing.provenance(cell, resolved) | row for row in rows]))
    before = [records.read(folder, cell.key) for cell in cells]
    card = resolved.sets["shapes"].card
    damage(Path(card.folder), Path(card.folder) / card.shards["test"][0]["file"])
    with pytest.raises(UserError, match=said) as failed:
        protocols.resolve(resolved.protocol, str(tmp_path))
    assert "\n" not in str(failed.value)
    assert [records.read(folder, cell.key) for cell in cells] == before
    storage.delete(card.folder)  # what a user does who is told that the set is damaged
    again = protocols.resolve(resolved.protocol, str(tmp_path))
    assert evaluation.evaluate([tiny_checkpoint], again, str(tmp_path), actors=1).num_rows == sum(map(len, before))
