"""Published numbers beside those of a run: each model's row, the column that counts the same attacks, and what tells two shares apart."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from robustclip.base.errors import UserError
from robustclip.commands import evaluate
from robustclip.evaluation import expected
from robustclip.evaluation.presets import FARE_13, PRESETS
from robustclip.evaluation.published import ROWS
from robustclip.records import metrics
from robustclip.records.expected import gap
from robustclip.records.rows import CLEAN


def config(name: str) -> dict[str, Any]:
    """Return the config of a model with the towers of one of open_clip's architectures."""
    return {"model_cfg": open_clip.get_model_config(name)}


def resolved(preset: str, images: int = 5000, **changes: Any) -> Any:
    """Return what `beside` asks of a resolved protocol whose sets have so many images."""
    protocol = replace(PRESETS[preset], **changes)
    return SimpleNamespace(protocol=protocol, sets={name: SimpleNamespace(index=range(images)) for name in protocol.sets})


def test_every_published_attack_is_one_that_its_preset_runs() -> None:
    left_out = [row for row in ROWS if expected.counted(row, PRESETS[row.preset]) is None]
    assert not left_out
    assert {row.attack for row in ROWS} == set(expected.COUNTED)


@pytest.mark.parametrize(
    ("preset", "attack", "eps", "column", "besides"),
    [
        ("tecoa-16", "clean", 0.0, CLEAN, ()),
        ("tecoa-16", "pgd-100", 1.0, (1.0, "pgd-100"), ()),  # first in the cascade: nothing came before it
        ("tecoa-16", "apgd-ce + apgd-dlr", 1.0, (1.0, "apgd-dlr-100"), ("pgd-100",)),
        ("tecoa-16", "apgd-ce + apgd-dlr", 4.0, (4.0, "apgd-dlr-100"), ("pgd-100", "all at ε < 4")),
        ("fare-13", "apgd-ce + apgd-t", 1.0, (1.0, "apgd-t-100"), ()),
        ("tapt-11", "autoattack", 1.0, (1.0, "square-5000"), ("pgd-100", "di-fgsm-100")),
    ],
)
def test_a_column_says_what_it_counts_besides(preset: str, attack: str, eps: float, column: Any, besides: tuple[str, ...]) -> None:
    row = next(row for row in ROWS if (row.preset, row.attack, row.eps) == (preset, attack, eps))
    assert expected.counted(row, PRESETS[preset]) == (column, besides)


def test_a_column_that_is_not_run_is_none() -> None:
    row = next(row for row in ROWS if (row.preset, row.eps) == ("fare-13", 4.0))
    assert expected.counted(row, replace(PRESETS["fare-13"], eps=(1.0, 2.0))) is None
    assert expected.counted(row, replace(PRESETS["fare-13"], attacks=PRESETS["fare-13"].attacks[:1])) is None


def test_the_numbers_are_those_of_the_row_and_of_as_many_images_as_in_print() -> None:
    found, notes = expected.beside({"mine": "FARE4 ViT-L/14"}, "fare-13", resolved("fare-13", eps=(2.0,)))
    assert notes == ["Published, and not run here: FARE4 ViT-L/14 under apgd-ce + apgd-t at ε=4."]
    assert [(len(each.sets), each.column) for each in found] == 13 * [(1, CLEAN)] + [(13, CLEAN)] + 13 * [(1, (2.0, "apgd-t-100"))] + [
        (13, (2.0, "apgd-t-100"))
    ]
    assert [each.sets for each in found[:13]] == [(name,) for name in FARE_13]
    pets = next(each for each in found if each.sets == ("oxfordpets",) and each.column != CLEAN)
    assert (pets.model, pets.row, pets.share, pets.n) == ("mine", "FARE4 ViT-L/14", pytest.approx(0.724), (1000,))
    assert {each.n[0] for each in found if each.column == CLEAN} == {5000}
    assert (found[13].share, found[-1].share) == (pytest.approx(0.611, abs=1e-3), pytest.approx(0.459, abs=1e-3))
    small, _ = expected.beside({"mine": "FARE4 ViT-L/14"}, "fare-13", resolved("fare-13", images=300))
    assert {each.n[0] for each in small} == {300}  # no paper counted more images of a set than there are


def test_averages_and_imagenet_stand_for_what_they_are_of() -> None:
    averages, _ = expected.beside({"b": "FARE1 ViT-B/32"}, "fare-13", resolved("fare-13"))
    assert [(len(each.sets), each.share) for each in averages] == [(13, pytest.approx(share)) for share in (0.605, 0.380, 0.201, 0.029)]
    imagenet, _ = expected.beside({"b": "FARE1 ViT-B/32"}, "fare-imagenet", resolved("fare-imagenet"))
    assert [(each.sets, each.share, each.n) for each in imagenet] == [
        (("imagenet",), pytest.approx(share), (5000,)) for share in (0.621, 0.329, 0.122, 0.002)
    ]
    part, _ = expected.beside({"t": "FT(TeCoA)"}, "tecoa-14", resolved("tecoa-14", eps=(1.0,)))
    mean = next(each for each in part if len(each.sets) == 14 and each.column == (1.0, "pgd-100"))
    assert mean.share == pytest.approx(0.3964, abs=1e-4)
    few, _ = expected.beside({"b": "FARE1 ViT-B/32"}, "fare-13", resolved("fare-13", sets=("dtd", "pcam"), rules=()))
    assert few == []  # an average over 13 sets says nothing of two


def test_every_model_has_its_row_and_the_base_that_of_clip() -> None:
    large, small, middle = map(config, ("ViT-L-14", "ViT-B-32", "ViT-B-16"))
    assert expected.choose(["FARE4"], "fare-13", ["mine"], "base", large) == {"base": "CLIP ViT-L/14", "mine": "FARE4 ViT-L/14"}
    assert expected.choose(["CLIP ViT-B/32"], "fare-13", ["base"], "base", small) == {"base": "CLIP ViT-B/32"}
    assert expected.choose(["published"], "tecoa-16", ["x", "FT(TeCoA)"], "base", small) == {"base": "CLIP", "FT(TeCoA)": "FT(TeCoA)"}
    both = {"base": "CLIP ViT-B/16", "a": "TAPT-V ViT-B/16", "b": "APT-V ViT-B/16"}
    assert expected.choose(["TAPT-V", "APT-V"], "tapt-11", ["a", "b"], "base", middle) == both
    found, _ = expected.beside({"a": "TAPT-V ViT-B/16"}, "tapt-11", resolved("tapt-11"))
    assert [each.column for each in found if len(each.sets) == 11] == [(1.0, "pgd-100"), (1.0, "square-5000"), CLEAN]
    with pytest.raises(UserError, match=r"no published row is called 'x': name one, --expect .*FARE4 ViT-L/14"):
        expected.choose(["published"], "fare-13", ["x"], "base", small)


@pytest.mark.parametrize(("preset", "word", "row"), [("fare-13", "FARE4", "FARE4 ViT-L/14"), ("tga-16", "TGA-ZSR", "TGA-ZSR")])
def test_a_base_of_another_tower_stands_beside_no_clip(preset: str, word: str, row: str) -> None:
    for other in ({}, {"model_cfg": {"vision_cfg": {"layers": 4, "width": 64, "patch_size": 4}}}, config("ViT-B-16")):
        assert expected.choose([word], preset, ["mine"], "base", other) == {"mine": row}


def test_an_embedded_model_in_place_of_a_base_stands_beside_no_clip() -> None:
    file = "open_clip:ViT-L-14-quickgelu/openai//fare4.pt"
    first: Any = SimpleNamespace(open_clip_config=config("ViT-L-14-quickgelu"))
    called = {"tiny-vit8": "tiny-vit8", file: file}
    assert evaluate.rows(["FARE4"], "fare-13", [file], called, first) == {file: "FARE4 ViT-L/14"}
    tuned = {"base": "my CLIP", "run": "run-1"}
    assert evaluate.rows(["FARE4"], "fare-13", ["run"], tuned, first) == {"my CLIP": "CLIP ViT-L/14", "run-1": "FARE4 ViT-L/14"}


def test_openais_weights_in_the_zoo_are_the_published_clip() -> None:
    for name, preset, row in (("ViT-B-32", "tecoa-16", "CLIP"), ("ViT-L-14", "fare-13", "CLIP ViT-L/14")):
        zoo = f"open_clip:{name}-quickgelu/openai"
        assert expected.choose(["published"], preset, [zoo], "tiny-vit8", {}) == {zoo: row}


@pytest.mark.parametrize(
    ("words", "preset", "changes", "said"),
    [
        (["FARE4"], "demo", {}, r"nothing is published for protocol 'demo' here: --expect goes with tecoa-16"),
        (["FARE9"], "fare-13", {}, "no published row 'FARE9'.*'FARE4 ViT-L/14'"),
        (["FARE4"], "fare-13", {"eps": (8.0,)}, "none of the published attacks and eps is run"),
        (["CLIP"], "fare-13", {}, r"'CLIP' is published for several towers: say which, 'CLIP ViT-L/14' or 'CLIP ViT-B/32'"),
        (["FARE4", "FARE2"], "fare-13", {}, "names 2 rows for 1 models"),
        (["published"], "mmcoa-16", {}, "nothing is published for protocol 'mmcoa-16'"),
    ],
)
def test_what_cannot_be_held_against_anything_is_refused(words: list[str], preset: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        expected.check(words, preset, replace(PRESETS.get(preset, PRESETS["fare-13"]), **changes), 1)
    expected.check(["FARE4"], "fare-13", PRESETS["fare-13"], 1)


@pytest.mark.parametrize(("a", "n", "b", "m"), [(56, 70, 48, 80), (0, 50, 0, 40), (724, 1000, 700, 1000), (9, 10, 3, 10), (3, 10, 9, 10)])
def test_the_interval_of_a_difference_is_newcombes(a: int, n: int, b: int, m: int) -> None:
    found = gap(metrics.of_share(a / n, n), metrics.of_share(b / m, m))
    low, high = confint_proportions_2indep(a, n, b, m, method="newcomb")
    assert (found.point, found.low, found.high) == pytest.approx((a / n - b / m, low, high), abs=1e-12)
    assert found.agrees == (low <= 0 <= high)
