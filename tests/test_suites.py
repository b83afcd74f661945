"""A suite from one folder: what is there is found and prepared, what is missing is named, what has not changed is not read again."""

import json
import re
import sys
from pathlib import Path

import pytest
from layouts import FLAT, beside, folder, imagenet_archives, textures_of_coop, under
from miniatures import (
    aircraft,
    cars,
    cifar_binary,
    cifar_python,
    classes,
    flat,
    food,
    hugging_face,
    lines,
    pets,
    scenes,
    solution,
    stl,
    textures,
    webdataset,
)
from sourcing import as_folder, as_tar

from robustclip.base import errors
from robustclip.base.errors import UserError
from robustclip.commands import prepare as command
from robustclip.data import marks, naming, suites
from robustclip.data.formats import FORMATS
from robustclip.data.known import differences
from robustclip.data.preparation import prepare
from robustclip.data.sets import SETS
from robustclip.data.suites import located, prepare_suite
from robustclip.evaluation.presets import PRESETS, TITLES

SCORED = {"dtd": "test", "stl10": "all"}
THREE = ("dtd", "stl10", "stanfordcars")


def outcomes(tmp_path, names=THREE, suite="tecoa-16", **options):
    return {
        each.known.name: each for each in prepare_suite(str(tmp_path / "out"), str(tmp_path / "root"), suite, names, {}, SCORED, **options)
    }


def root(tmp_path):
    """Make a folder with two sets of three."""
    as_folder(tmp_path / "root" / "DTD", textures())
    as_tar(tmp_path / "root" / "stl10_binary.tar.gz", under("stl10_binary", stl)())
    return tmp_path / "root"


def test_what_is_there_is_prepared_and_what_is_missing_named(tmp_path):
    root(tmp_path)
    found = outcomes(tmp_path)
    assert {name: each.state for name, each in found.items()} == {"dtd": "prepared", "stl10": "prepared", "stanfordcars": "missing"}
    assert SETS["stanfordcars"].url in found["stanfordcars"].said[0]
    assert "2 classes where the published set has 47" in found["dtd"].said
    assert "tecoa-16 scores the split 'all', which this copy does not have" in found["stl10"].said
    assert "3 test images where the published set has 8000" in found["stl10"].said
    assert found["dtd"].card.licence == SETS["dtd"].licence


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    place = root(tmp_path)
    outcomes(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(marks, "prepare", lambda *_, **__: pytest.fail("read again"))
        assert {each.state for each in outcomes(tmp_path).values()} == {"unchanged", "missing"}
    (place / "DTD" / "images" / "banded" / "banded_2.jpg").touch()  # other times, the same images
    read = []
    found = outcomes(tmp_path, starting=lambda name, source: read.append(name))
    assert (read, found["dtd"].state) == (["dtd"], "unchanged")
    shard = Path(found["dtd"].card.folder) / "test-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert outcomes(tmp_path)["dtd"].state == "prepared"


def test_names_that_packages_gave_otherwise_are_no_longer_unchanged(tmp_path, monkeypatch):
    listed = {}
    monkeypatch.setattr(naming, "clip_benchmark", lambda name: listed.get(name, ()))
    as_folder(tmp_path / "root" / "oxford_pets", pets())
    for state in ("prepared", "unchanged"):
        assert outcomes(tmp_path, ("oxfordpets",), "fare-13")["oxfordpets"].state == state
    listed["oxfordpets"] = ("abyssinian cat", "japanese chin dog")
    found = outcomes(tmp_path, ("oxfordpets",), "fare-13")["oxfordpets"]
    assert found.state == "failed"
    assert "replace it with --fresh" in found.said[0]
    assert outcomes(tmp_path, ("oxfordpets",), "fare-13", fresh=True)["oxfordpets"].card.class_names == listed["oxfordpets"]
    assert outcomes(tmp_path, ("oxfordpets",), "fare-13")["oxfordpets"].state == "unchanged"


@pytest.mark.parametrize(("name", "files"), [("cifar-10-python.tar.gz", cifar_python), ("cifar-10-binary.tar.gz", cifar_binary)])
def test_cifar_is_found_as_it_is_downloaded(tmp_path, name, files):
    (tmp_path / "root").mkdir()
    as_tar(tmp_path / "root" / name, files())
    assert outcomes(tmp_path, ("cifar10",))["cifar10"].card.splits == {"train": 10, "test": 3}


def test_imagenets_archives_in_the_folder_of_all_sets_are_one_set(tmp_path):
    place = Path(beside(imagenet_archives)(tmp_path)[0]).rename(tmp_path / "root")
    found = outcomes(tmp_path, ("imagenet", "dtd"))
    assert (found["imagenet"].done.format, found["imagenet"].card.splits, found["imagenet"].card.class_names) == FLAT
    assert found["dtd"].state == "missing"
    assert outcomes(tmp_path, ("imagenet",))["imagenet"].state == "unchanged"
    (place / "ILSVRC2012_img_train.tar").touch()
    read = []
    assert outcomes(tmp_path, ("imagenet",), starting=lambda name, source: read.append(source))["imagenet"].state == "unchanged"
    assert [Path(each).name for each in read[0].split(", ")] == [
        "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
    ]  # fmt: skip
    as_folder(place / "imagenet", flat(solution()))
    assert located(str(place), SETS["imagenet"], "tecoa-16")[0] == (str(place / "imagenet"),)


def test_a_bad_set_loses_no_other(tmp_path):
    place = root(tmp_path)
    (place / "DTD" / "labels" / "test1.txt").unlink()
    as_folder(place / "stanford_cars", cars())
    found = outcomes(tmp_path)
    assert {name: each.state for name, each in found.items()} == {"dtd": "failed", "stl10": "prepared", "stanfordcars": "prepared"}
    assert "labels/test1.txt is missing" in found["dtd"].said[0]


def test_the_suite_chooses_among_copies_and_splits(tmp_path):
    as_folder(tmp_path / "root" / "dtd", textures_of_coop())
    as_folder(tmp_path / "root" / "wds_vtab-dtd", webdataset())
    as_folder(tmp_path / "root" / "fgvc_aircraft", aircraft())
    assert [Path(place).name for (place,) in located(str(tmp_path / "root"), SETS["dtd"], "fare-13")] == ["wds_vtab-dtd", "dtd"]
    assert outcomes(tmp_path / "a", ()) == {}
    (tmp_path / "tapt").mkdir()
    (tmp_path / "tapt" / "root").symlink_to(tmp_path / "root")
    found = outcomes(tmp_path / "tapt", ("dtd", "fgvcaircraft"), "tapt-11")
    assert found["dtd"].card.splits == {"coop-train": 1, "coop-test": 1}
    assert found["fgvcaircraft"].card.splits == {"coop-train": 2, "coop-val": 2, "coop-test": 2}
    assert f"{tmp_path}/tapt/root/wds_vtab-dtd left aside" in found["dtd"].said
    assert outcomes(tmp_path, ("dtd",), "tecoa-16")["dtd"].done.format == "DTD's lists"
    as_folder(tmp_path / "root" / "food-101", food("txt"))
    assert "split_zhou_NAME.json" in outcomes(tmp_path / "tapt", ("food101",), "tapt-11")["food101"].said[0]


def test_imagenet_of_a_suite_has_its_names(tmp_path):
    as_folder(tmp_path / "root" / "imagenet", flat(solution()))
    assert outcomes(tmp_path, ("imagenet",))["imagenet"].card.class_names == ("tench", "goldfish", "great white shark")


def test_the_table_knows_every_set_of_every_suite():
    assert {name for protocol in PRESETS.values() for name in protocol.sets} <= {*SETS}
    assert {*TITLES} <= {*SETS}
    for protocol in PRESETS.values():
        for rule in protocol.rules:
            known = SETS[rule.name]
            assert rule.split in known.images, (protocol.name, rule.name)
            assert rule.images in (None, known.images[rule.split]), (protocol.name, rule.name)
            assert rule.classes in (None, known.classes, *known.other_classes), (protocol.name, rule.name)
    for known in SETS.values():
        assert known.url.startswith("http")
        assert known.licence


def test_the_page_has_every_set_and_every_format():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    for known in SETS.values():
        images = ", ".join(f"{split} {rows:,}" for split, rows in known.images.items())
        assert re.search(rf"^\| `{known.name}` \| .* \| {known.classes} \| {images} \|$", page, re.MULTILINE), known.name
    for name in FORMATS:
        assert re.search(rf"^\| [^|]+ \| .*`{name}`.* \| ", page, re.MULTILINE), name


def test_no_two_sets_are_called_alike():
    usual = [suites._letters(name) for known in SETS.values() for name in {suites._letters(each) for each in (known.name, *known.folders)}]
    assert len(usual) == len({*usual})


def test_differences_are_said_of_splits_that_are_known():
    assert differences(SETS["dtd"], 47, {"test": 1880, "mine": 3}) == []
    assert differences(SETS["dtd"], 46, {"test": 9}) == [
        "46 classes where the published set has 47",
        "9 test images where the published set has 1880",
    ]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    try:
        errors.main(command.run)
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_takes_files_of_names_and_templates(tmp_path, monkeypatch, capsys):
    source = folder(hugging_face)(tmp_path)[0]
    as_folder(tmp_path, {"names.json": json.dumps({"sea_lion": "seal"}).encode(), "prompts.txt": lines("a {c}.", "the {c}.")})
    words = (source, "--name", "zoo", "--out", tmp_path / "out", "--class-names", tmp_path / "names.json", "--templates")
    assert run(monkeypatch, *words, tmp_path / "prompts.txt") == 0
    said = capsys.readouterr().out
    assert "read as Hugging Face Parquet" in said
    card = json.loads((tmp_path / "out" / "data" / "zoo" / "dataset.json").read_text())
    assert (card["class_names"], card["templates"]) == (["cat", "seal", "zebra"], ["a {}.", "the {}."])


def test_the_command_prepares_a_suite_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    as_folder(root(tmp_path) / "SUN397", scenes())
    words = ("--suite", "tecoa-16", "--root", tmp_path / "root", "--out", tmp_path / "out")
    for state in ("prepared", "unchanged"):
        assert run(monkeypatch, *words) == 2
        said = capsys.readouterr()
        assert f"sun397: {state}, 3 classes; all: 6 images" in said.out
        assert "3 of 16 sets of tecoa-16" in said.out
        assert "https://www.cs.toronto.edu/~kriz/cifar.html" in said.out
        assert said.err.count("\n") == 1
        assert "not there yet: imagenet (missing), cifar10 (missing)" in said.err
    card = json.loads((tmp_path / "out" / "data" / "dtd" / "dataset.json").read_text())
    assert card["templates"] == ["A surface with a {} texture."]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to prepare"),
        (("--suite", "fare-12", "--root", "."), "did you mean fare-13"),
        (("--suite", "fare-13"), "add --root DIR"),
        (("--suite", "fare-13", "--root", "/nowhere/at/all"), "no such folder"),
        (("--suite", "fare-13", "--root", ".", "--name", "x"), "leave out --name"),
        (("x", "--name", "x", "--root", "."), "are of --suite"),
        (("world:shapes", "--format", "dtd"), "a format and class names of its own"),
        (("x", "--name", "x", "--format", "dtt"), "did you mean dtd"),
        (("x", "--name", "x", "--class-names", "/nowhere.txt"), "no such file"),
    ],
)
def test_what_cannot_be_asked_is_refused(monkeypatch, capsys, words, said):
    assert run(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err


def test_one_image_of_two_sources_is_one_too_many(tmp_path):
    source = folder(lambda: classes("test/a"))(tmp_path)
    with pytest.raises(UserError, match="more than once"):
        prepare(str(tmp_path / "out"), "twice", source * 2)
