"""Attacked images kept as files: read again they are what was made, and nothing else is taken for them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import NAMES, TEMPLATES

from robustclip import names as models
from robustclip.attacks import MIFGSM, PGD
from robustclip.attacks.ensembles import AUTOATTACK
from robustclip.attacks.levels import Aimed
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.evaluation import computing, protocols
from robustclip.evaluation.transfers import Transfers
from robustclip.models.adaptive import Adaptive
from robustclip.records import rows as records

BALL = Ball("Linf", 8.0)
FEW = ({"steps": 3}, {"steps": 3, "targets": 1}, {"steps": 3, "targets": 1}, {"queries": 5})  # for AutoAttack's four


@dataclass(frozen=True)
class Counted(PGD):
    """PGD that counts how often it is asked."""

    calls: ClassVar[list] = []

    def __call__(self, *met):
        self.calls.append(met[0])
        return super().__call__(*met)


@pytest.fixture
def asked(tiny_model, pictures, tmp_path):
    """Return a function that aims an attack at a level of a defence over one classifier, files in between."""
    images, labels, ids = pictures(6)
    base = tiny_model.classifier(NAMES, TEMPLATES)
    Counted.calls.clear()

    def ask(level="A1", attack=None, ball=BALL, seed=0, start=None, a1="one", about=(), images=images, labels=labels, ids=ids, batch=4):
        defence = Adaptive(base, start)
        defence.undefended = lambda: base
        defence.transfers = Transfers(str(tmp_path), {"A0": "plain", "A1": a1}, about)
        return Aimed(level, attack or Counted(3))(defence, images, labels, ids, ball, seed, batch)

    return ask


@pytest.mark.parametrize("attack", [PGD(3), MIFGSM(3), *(replace(each, **few) for each, few in zip(AUTOATTACK, FEW, strict=True))])
def test_what_is_read_again_is_what_was_made(asked, pictures, attack):
    """With pixels as shards hold them, channels last: a norm adds them up in the order of the memory."""
    images = pictures(6)[0].contiguous(memory_format=torch.channels_last)
    made, read = asked(attack=attack, images=images), asked(attack=attack, images=images)
    assert torch.equal(made.images, read.images)
    assert made.images.stride() == read.images.stride() == images.stride()
    assert made.spent == 0.0 < read.spent
    assert (made.trace is None) == (read.trace is None)
    for name, value in vars(made.trace).items() if made.trace else ():
        torch.testing.assert_close(value, getattr(read.trace, name), rtol=0, atol=0, equal_nan=True)


def test_a_level_that_sees_the_same_model_is_not_computed_again(asked, tiny_model):
    other = tiny_model.classifier(NAMES, ("{}",))
    for more, calls in (({}, 1), ({"level": "A2"}, 1), ({"a1": "two"}, 2), ({"level": "A0"}, 3), ({"level": "A0", "a1": "three"}, 3)):
        asked(**more)
        assert len(Counted.calls) == calls, more
    for _ in range(2):
        asked(level="A2", start=other)
    assert Counted.calls[3:] == [other, other], "a start of its own is nobody else's"


def test_whatever_changes_is_asked_anew(asked, pictures):
    images, labels, ids = pictures(6)
    changes = [
        {"ball": Ball("Linf", 4.0)},
        {"seed": 1},
        {"attack": Counted(4)},
        {"images": images.flip(-1)},
        {"labels": labels.roll(1)},
        {"about": ("other prompts",)},
        {"batch": 3},
        {"ids": [f"{id_}'" for id_ in ids]},
    ]
    for calls, change in enumerate([{}, *changes, {}, *changes], 1):
        asked(**change)
        assert len(Counted.calls) == min(calls, 1 + len(changes)), change


def test_a_damaged_file_is_named(asked, tmp_path):
    asked()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{file.name}.*delete"):
        asked()


def test_records_are_the_same_and_every_plain_model_is_attacked_once(tmp_path: Path) -> None:
    attacks = tuple(Aimed(level, PGD(2)) for level in ("A0", "A1", "A2", "A3"))
    smoke = replace(protocols.named("smoke"), attacks=attacks, sets=("shapes",), n=6, independent=True)
    resolved, names = protocols.resolve(smoke, str(tmp_path)), ("tiny-vit8", "views[views=4,keep=0.5]:tiny-vit8", "ttc:tiny-vit8")

    def rows(out: str | None) -> list[dict]:
        found = []
        for name in names:
            (cell,) = resolved.cells(models.display_name(name), models.identity(name))
            found += computing.compute(models.load(name), cell, resolved, out)
        return [{key: value for key, value in row.items() if key not in records.VOLATILE} for row in found]

    assert rows(str(tmp_path)) == rows(None)
    assert len(list((tmp_path / "transfers").iterdir())) == 1, "one image batch, one attack, one plain CLIP under all three"
    assert rows(str(tmp_path)) == rows(None)


def test_another_architecture_is_another_model(tiny_model, tmp_path: Path) -> None:
    """Heads, for one, are in no tensor."""
    config = {**tiny_model.open_clip_config, "model_cfg": {**tiny_model.open_clip_config["model_cfg"], "quick_gelu": True}}
    seen = []
    for model in (
        tiny_model,
        replace(tiny_model, open_clip_config=config),
        replace(tiny_model, card={**tiny_model.card, "trainable": "x"}),
    ):
        classifier = model.classifier(NAMES, TEMPLATES)
        seen.append(computing.transfers_of(model, model, classifier, "prompts", "cpu", str(tmp_path)).models["A1"])
    assert len(set(seen)) == 3
