"""Published protocols from the files of their sets to the sheet of published numbers, on miniatures (benchmarks/every_preset.py)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import every_preset
import pytest
import torch
from conftest import STATISTICS

from robustclip.commands import prepare
from robustclip.data.reading import to_images
from robustclip.evaluation import expected
from robustclip.evaluation.alone import evaluate_model
from robustclip.evaluation.presets import BINARY, PRESETS
from robustclip.evaluation.protocols import Resolved, resolve
from robustclip.models.model import Model
from robustclip.records.rows import CLEAN
from robustclip.results import report
from robustclip.results.page import Page

CLASSES = 10
PRINTED = {CLEAN: 0.622, (1.0, "apgd-t-100"): 0.0, (2.0, "apgd-t-100"): 0.0, (4.0, "apgd-t-100"): 0.0}  # CLIP ViT-B/32 on ImageNet


def found(name: str, n: int, folder: Path) -> Resolved:
    """Return a preset with the miniatures of its sets prepared as its suite."""
    protocol = every_preset.cut(PRESETS[name], CLASSES, n)
    every_preset.lay_out(folder / "sets", protocol, CLASSES)
    words = ("--suite", name, "--root", str(folder / "sets"), "--out", str(folder / "out"))
    every_preset.command(prepare.run, *words)
    return resolve(protocol, str(folder / "out"))


def test_the_smallest_preset_goes_from_files_to_its_published_row(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    resolved = found("fare-imagenet", 4, tmp_path)
    model = replace(make_model(seed=1), name="CLIP ViT-B/32")  # so it stands beside the row of this name
    # With its contrast turned up it falls within a few steps; hundreds would take seconds.
    model = replace(model, open_clip_config=model.open_clip_config | {"preprocess_cfg": STATISTICS | {"size": 16, "std": [0.01] * 3}})
    table = evaluate_model(model, resolved)
    chosen = expected.choose(["published"], "fare-imagenet", [model.name], model.name, model.open_clip_config)
    published, notes = expected.beside(chosen, "fare-imagenet", resolved)
    built = report.from_records(table, resolved.describe(), [model.name], expected=published, notes=notes)

    test_set = resolved.sets["imagenet"]
    assert test_set.card.class_names[:2] == ("tench", "goldfish")
    _, pixels, labels = resolved.read("imagenet", test_set.rows, 16)
    assert pixels.shape == (4, 224, 224, 3)
    with torch.no_grad():
        answers = model.classifier(test_set.card.class_names, test_set.card.templates)(to_images(pixels, "cpu")).argmax(1)
    right = (answers == torch.as_tensor(labels)).sum().item()
    assert right > 0  # something to attack
    assert built.mean(model.name, CLEAN).mean == right / 4
    ran = list(zip(table["attack"].to_pylist(), table["eps"].to_pylist()))
    assert {attack for attack, _ in ran} <= {CLEAN, *(attack.name for attack in PRESETS["fare-imagenet"].attacks)}
    assert ran.count(("apgd-ce-100x5", 1.0)) == right
    assert built.mean(model.name, 1.0).mean == 0
    assert [(each.row, each.column, each.share) for each in published] == [
        ("CLIP ViT-B/32", column, pytest.approx(share)) for column, share in PRINTED.items()
    ]
    said = Page(built).markdown()
    assert "robust ε=4" in said
    assert "Schlarmann et al. 2024 (FARE)" in said


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_finds_its_sets_as_its_suite_prepares_them(name: str, tmp_path: Path) -> None:
    resolved, preset = found(name, 2, tmp_path), PRESETS[name]
    assert tuple(resolved.sets) == preset.sets
    assert {each: len(test_set.rows) for each, test_set in resolved.sets.items()} == dict.fromkeys(preset.sets, 2)
    for each, test_set in resolved.sets.items():
        rule = preset.rule(each)
        assert test_set.split == rule.split
        assert len(test_set.card.class_names) == (2 if each in BINARY else CLASSES)
        assert test_set.card.templates == rule.templates or each == "hatefulmemes"
        assert resolved.skips[each] == list(rule.skips)  # ten classes are enough for every attack
        assert resolved.read(each, test_set.rows, 32)[1].shape[1:3] == (rule.native or preset.crop,) * 2
    if row := every_preset.row_of_clip(name):
        published, _ = expected.beside({"m": row}, name, resolved)
        assert any(each.sets == preset.sets for each in published)  # the average is held against a printed one
    else:
        assert name in ("ttc-16", "mmcoa-16")
