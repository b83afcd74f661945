"""What universal perturbations are learned on in an evaluation: images that are not scored, once for all cells of a set."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robustclip import names as models
from robustclip.attacks import PGD, Universal
from robustclip.attacks.levels import Aimed
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.preparation import prepare
from robustclip.evaluation import computing, evaluator, progress, protocols
from robustclip.evaluation.forecast import Cost, Work, passes
from robustclip.evaluation.probing import on_images
from robustclip.evaluation.protocols import Cell, Protocol, Resolved, resolve
from robustclip.evaluation.rules import SetRule
from robustclip.evaluation.surrogates import Perturbations
from robustclip.records import rows as records
from robustclip.records import survival

UAP = Universal(2, images=12, batch=6)
SMOKE = replace(protocols.named("smoke"), sets=("shapes",), attacks=(UAP,), eps=(12.0,), n=8, independent=True)
NAME = "tiny-vit8"


@pytest.fixture
def learning(monkeypatch):
    """Return a list that grows by one whenever a perturbation is learned."""
    seen, learned = [], Universal.learned
    monkeypatch.setattr(Universal, "learned", lambda self, *met: (seen.append(self), learned(self, *met))[1])
    return seen


def cells_of(resolved: Resolved, name: str = NAME) -> list[Cell]:
    return resolved.cells(models.display_name(name), models.identity(name))


def rows_of(resolved: Resolved, out: str | None, name: str = NAME) -> list[dict]:
    """Return the rows of all cells of a model, without what two honest runs may differ in."""
    model = models.load(name)
    found = [row for cell in cells_of(resolved, name) for row in computing.compute(model, cell, resolved, out)]
    return [{key: value for key, value in row.items() if key not in records.VOLATILE} for row in found]


@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_an_embedded_set_goes_on_after_the_images_that_are_scored(tmp_path: Path, name: str) -> None:
    resolved = resolve(replace(SMOKE, sets=(name,)), str(tmp_path))
    scored, others = resolved.sets[name], resolved.surrogates[name]
    assert (len(scored.ids), len(others.ids)) == (8, 12)
    assert not set(scored.ids) & set(others.ids)
    longer = replace(resolved, sets=resolved.surrogates)
    pixels = {id_: image for r in (resolved, longer) for id_, image in zip(*r.read(name, r.sets[name].rows, 32)[:2], strict=True)}
    assert len({image.tobytes() for image in pixels.values()}) == 20, "no image of the one is one of the other under another name"
    drawn = protocols.ensure_set(str(tmp_path), name, {"test": 20}, SMOKE.render_seed)
    assert set(protocols.scan(drawn.folder, drawn, "test").id.to_pylist()) == set(pixels)


def photos(folder: Path, **splits: int) -> Path:
    """Write so many images of each of three classes into splits."""
    for at, (split, n) in enumerate(splits.items()):
        for label, colour in enumerate(("red", "green", "blue")):
            (folder / split / colour).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (80 * label, 20 * i, 30 * at)).save(folder / split / colour / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("splits", "changes", "split", "n"),
    [
        ({"test": 4, "train": 9, "val": 5}, {}, "train", 12),
        ({"test": 4, "val": 5}, {}, "val", 12),
        ({"test": 4, "train": 2}, {"n": None}, "train", 6),
        ({"test": 4}, {}, "test", 4),
        ({"test": 4, "train": 9}, {"rules": (SetRule("mine", split="train"),)}, "train", 12),
        ({"test": 4, "train": 9, "val": 5}, {"rules": (SetRule("mine", split="train"),)}, "val", 12),
    ],
)
def test_a_prepared_set_gives_a_split_of_its_own_or_what_is_left(tmp_path, caplog, splits, changes, split, n) -> None:
    prepare(str(tmp_path / "out"), "mine", [str(photos(tmp_path / "photos", **splits))])
    chosen = replace(SMOKE, sets=("mine",), **changes)
    with caplog.at_level(logging.WARNING):
        resolved = resolve(chosen, str(tmp_path / "out"))
    scored, others = resolved.sets["mine"], resolved.surrogates["mine"]
    assert (others.split, len(others.ids)) == (split, n)
    assert not set(scored.ids) & set(others.ids)
    assert all(id_.startswith(f"{split}/") for id_ in others.ids)
    assert np.ptp(np.bincount(others.index.label)) <= 2, "about as many of each class"
    assert (f"uap-2 is learned on {n} images, not 12" in caplog.text) == (n < 12)
    told = resolved.describe()["sets"]["mine"]["surrogates"]
    assert (told["split"], told["n"]) == (split, n)
    assert [(each.name, each.split, each.images) for each in resolved.inputs()] == [
        ("mine", scored.split, len(scored.ids)),
        ("mine", split, n),
    ]


def test_where_all_images_are_scored_nothing_can_be_learned(tmp_path: Path) -> None:
    prepare(str(tmp_path / "out"), "mine", [str(photos(tmp_path / "photos", test=4))])
    whole = replace(SMOKE, sets=("mine",), n=None)
    with pytest.raises(
        UserError, match=r"uap-2 is learned on images that are not scored, and all 12 of data set 'mine'.*prepare its train"
    ):
        resolve(whole, str(tmp_path / "out"))
    assert not resolve(replace(whole, attacks=(PGD(2),)), str(tmp_path / "out")).surrogates
    skipped = replace(whole, attacks=(PGD(2), UAP), rules=(SetRule("mine", skips=("uap-2",)),))
    assert not resolve(skipped, str(tmp_path / "out")).surrogates


def test_other_images_to_learn_on_are_another_protocol_and_no_protocol_without_is(tmp_path: Path) -> None:
    hashes = []
    for n, folder in ((5, "one"), (6, "two")):
        prepare(str(tmp_path / folder), "mine", [str(photos(tmp_path / f"photos-{folder}", test=4, train=n))])
        mine = [replace(SMOKE, sets=("mine",), attacks=attacks) for attacks in ((UAP,), (PGD(2),))]
        hashes.append([resolve(each, str(tmp_path / folder)) for each in mine])
    (with_one, without_one), (with_two, without_two) = hashes
    assert with_one.hash != with_two.hash
    assert without_one.hash == without_two.hash
    assert "surrogates" not in without_one.describe()["sets"]["mine"]


def test_planted_images_that_are_learned_on_and_scored_are_an_error(tmp_path: Path) -> None:
    resolved = resolve(SMOKE, str(tmp_path))
    (cell,) = cells_of(resolved)
    scored, others = resolved.sets["shapes"], resolved.surrogates["shapes"]
    one = np.array([*others.rows[:3]])
    assert computing.compute(models.load(NAME), cell, replace(resolved, surrogates={"shapes": replace(others, rows=one)}))
    for out in (None, str(tmp_path)):
        with pytest.raises(UserError, match=r"uap-2: 8 of 8 images are learned on and scored, such as 'shapes/test/"):
            computing.compute(models.load(NAME), cell, replace(resolved, surrogates={"shapes": scored}), out)


def test_cells_share_what_one_learned_and_records_are_the_same(tmp_path: Path, monkeypatch, learning: list) -> None:
    out = str(tmp_path)
    resolved = resolve(SMOKE, out)
    expected = sorted(rows_of(resolved, None), key=lambda row: (row["attack"], row["image_id"]))
    assert len(learning) == 1
    monkeypatch.setattr(protocols, "CELL_IMAGES", 3)
    assert len(cells_of(resolved)) == 3
    for learned, folder in ((2, "there"), (2, "read again"), (3, "deleted")):
        if folder == "deleted":
            storage.delete(str(tmp_path / "universal"))
        found = sorted(rows_of(resolved, out), key=lambda row: (row["attack"], row["image_id"]))
        assert found == expected, folder
        assert len(learning) == learned, folder
    assert len(storage.list_files(str(tmp_path / "universal"))) == 1


def test_what_was_learned_on_plain_clip_is_added_for_every_model_over_it(tmp_path: Path, learning: list) -> None:
    """A0 is transfer: one perturbation of the plain model, the same that the plain model is itself attacked by."""
    out = str(tmp_path)
    attacks = (UAP, Aimed("A0", UAP), Aimed("A1", UAP), Aimed("A3", UAP))
    resolved = resolve(replace(SMOKE, attacks=attacks), out)
    found = {name: rows_of(resolved, out, name) for name in (NAME, f"ttc:{NAME}", f"ttc[eps=1]:{NAME}")}
    assert len(learning) == 3, "one on plain CLIP, one on each defence"
    for name, rows in found.items():
        norms = {attack.name: [row["l2"] for row in rows if row["attack"] == attack.name] for attack in attacks}
        assert norms[attacks[1].name] == norms[attacks[2].name]
        assert norms[attacks[3].name] == norms["uap-2"]
        said = {row["attack"]: row.get("level") for row in rows}
        assert (said["uap-2"], said[attacks[1].name]) == (None, "grey-box A0")
        assert (norms[attacks[1].name] == norms["uap-2"]) == (name == NAME)
    assert not list(tmp_path.glob("transfers/*")), "the perturbation is kept, not every image under it"


def test_it_counts_in_the_worst_case(tmp_path: Path) -> None:
    both = replace(SMOKE, attacks=(UAP, PGD(1, alpha=0.1)), eps=(16.0,), n=16)
    assert both.apart == ()
    for independent in (True, False):
        resolved = resolve(replace(both, independent=independent), str(tmp_path))
        (cell,) = cells_of(resolved)
        rows = [computing.provenance(cell, resolved) | row for row in computing.compute(models.load(NAME), cell, resolved)]
        seen = survival.outcomes_of(records.table(rows), resolved.describe())[models.display_name(NAME)]["shapes"]
        broken = {
            attack: {row["image_id"] for row in rows if row["attack"] == attack and not row["correct"]} for attack in ("clean", "uap-2")
        }
        assert broken["uap-2"] - broken["clean"]
        left = [id_ not in broken["clean"] | broken["uap-2"] for id_ in seen.ids]
        assert any(left)
        assert seen.flags((16.0, "uap-2")).tolist() == left
        assert not (seen.flags(16.0) & ~np.array(left)).any()


def test_a_shard_that_changed_is_not_learned_on(tmp_path: Path) -> None:
    prepare(str(tmp_path), "mine", [str(photos(tmp_path / "photos", test=4, train=5))])
    resolved = resolve(replace(SMOKE, sets=("mine",)), str(tmp_path))
    (cell,) = cells_of(resolved)
    card = resolved.surrogates["mine"].card
    (shard,) = card.shards["train"]
    path = storage.join(card.folder, shard["file"])
    pq.write_table(pq.read_table(path).slice(0), path, compression="gzip")
    with pytest.raises(UserError, match=f"{shard['file']} was changed or damaged"):
        computing.compute(models.load(NAME), cell, resolved)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    kept = Perturbations(str(tmp_path), ("a model",))
    assert torch.equal(kept("uap", lambda: torch.ones(3, 2, 2)), torch.ones(3, 2, 2))
    (file,) = storage.list_files(str(tmp_path))
    Path(file).write_bytes(Path(file).read_bytes()[:20])
    with pytest.raises(UserError, match=f"{file} is damaged.*delete"):
        kept("uap", lambda: torch.ones(3, 2, 2))


def test_of_two_who_need_it_one_learns_and_the_other_waits(tmp_path: Path) -> None:
    learned, found = [], []

    def learn() -> torch.Tensor:
        learned.append(1)
        time.sleep(0.5)
        return torch.full((3, 2, 2), 0.25)

    kept = Perturbations(str(tmp_path), ("a model",))
    both = [threading.Thread(target=lambda: found.append(kept("uap", learn))) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(learned) == 1
    assert torch.equal(*found)
    assert not torch.equal(Perturbations(str(tmp_path), ("another",))("uap", lambda: torch.zeros(3, 2, 2)), found[0])


def test_the_first_cells_of_all_sets_come_first() -> None:
    keys = ("a1", "a2", "a3", "b1", "b2", "c1")
    cells = [Cell(key, "result", "model", "sha", key[0], None, ()) for key in keys]  # type: ignore[arg-type]
    assert [cell.key for cell in progress.by_turns(cells)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    others = [replace(cell, key=f"{cell.key}'", model_sha256="other") for cell in cells[:2]]
    assert [cell.key for cell in progress.by_turns([*cells[:2], *others])] == ["a1", "a1'", "a2", "a2'"]


def test_what_it_takes_to_learn_is_forecast_once_for_a_set(tmp_path: Path) -> None:
    assert passes(UAP, 4, SMOKE.balls()[0]) == passes(Aimed("A0", UAP), 4, SMOKE.balls()[0]) == (2, 0)
    for independent, least in ((True, 1.0), (False, 0.0)):
        resolved, work = resolve(replace(SMOKE, eps=(1.0, 2.0), independent=independent), str(tmp_path)), Work()
        work.learn("shapes", resolved, Cost(0.25, 0.5))
        assert (work.shown, work.most, work.least) == (2 * 2 * 12, 24.0, 24.0 * least)


def test_what_is_asked_of_a_classifier_outside_of_a_cell_is_learned_too(tmp_path: Path) -> None:
    resolved = resolve(SMOKE, str(tmp_path))
    rows, drawn = resolved.sets["shapes"].rows[:2], []
    for name in (NAME, f"ttc:{NAME}"):
        classifier, images, labels, ids = computing.on_device(models.load(name), resolved, "shapes", rows)
        drawn.append(UAP.delta(classifier, ids, SMOKE.balls()[0], 0, 4))
        assert UAP(classifier, images, labels, ids, SMOKE.balls()[0], 0, 4).images.shape == images.shape
    assert not torch.equal(*drawn), "a defence has its own"


def test_checks_are_of_attacks_that_look_at_their_image() -> None:
    assert on_images([UAP, PGD(3)]) == [PGD(3)]
    assert on_images([Aimed("A3", UAP), Aimed("A3", PGD(4))]) == [PGD(4)]
    assert on_images([UAP]) == [PGD(20)]


def test_two_actors_learn_each_perturbation_once(ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch) -> None:
    monkeypatch.setattr(protocols, "CELL_IMAGES", 4)
    resolved = resolve(replace(SMOKE, sets=("shapes", "digits")), str(tmp_path))
    table = evaluator.evaluate([tiny_checkpoint], resolved, str(tmp_path / "out"), actors=2, cpus=0.5)
    files = storage.list_files(str(tmp_path / "out" / "universal"))
    assert 1 <= len(files) <= 2, "a set of which no image is right learns nothing"
    found = [{key: row[key] for key in ("image_id", "attack", "prediction", "linf", "l2")} for row in table.to_pylist()]
    assert found == [{key: row.get(key) for key in found[0]} for row in rows_of(resolved, None, tiny_checkpoint)]
    again = evaluator.evaluate([tiny_checkpoint], resolved, str(tmp_path / "out"), actors=2)
    assert records.content_sha256(again) == records.content_sha256(table)


def test_a_protocol_names_it(tmp_path: Path) -> None:
    from robustclip.attacks.catalogue import named

    (attack,) = named(["uap-10"])
    protocol = Protocol("mine", ("shapes",), (PGD(2), attack, Aimed("A0", attack)), (4.0,))
    assert protocol.universal_on("shapes") == (Universal(10), Universal(10))
    assert protocol.universal_on("shapes")[0].images == 200
