"""A suite from one folder: what is there is found and prepared, what is missing is named, what has not changed is not read again."""

import json
import re
import sys
from pathlib import Path

import pytest
from layouts import folder, textures_of_coop, under
from miniatures import aircraft, cars, classes, flat, food, hugging_face, lines, scenes, solution, stl, textures, webdataset
from sourcing import as_folder, as_tar

from robustclip.base import errors
from robustclip.base.errors import UserError
from robustclip.commands import prepare as command
from robustclip.data import naming, suites
from robustclip.data.formats import FORMATS
from robustclip.data.known import differences
from robustclip.data.naming import names_file, renamed, suite_names, templates_file
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
        patch.setattr(suites, "prepare", lambda *_, **__: pytest.fail("read again"))
        assert {each.state for each in outcomes(tmp_path).values()} == {"unchanged", "missing"}
    (place / "DTD" / "images" / "banded" / "banded_2.jpg").touch()  # other times, the same images
    read = []
    found = outcomes(tmp_path, starting=lambda name, source: read.append(name))
    assert (read, found["dtd"].state) == (["dtd"], "unchanged")
    shard = Path(found["dtd"].card.folder) / "test-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert outcomes(tmp_path)["dtd"].state == "prepared"


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
    assert [Path(place).name for place in located(str(tmp_path / "root"), SETS["dtd"], "fare-13")] == ["wds_vtab-dtd", "dtd"]
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


# suite, set, keys, names, reference, clean
NAMES = [
    ("tecoa-16", "caltech101", ("Faces", "Faces_easy", "ant"), None, ("person", "person", "ant"), ("off center face", "face", "ant")),
    ("tecoa-16", "stanfordcars", ("Acura RL 2012",), None, ("acura rl",), ("Acura RL 2012",)),
    ("mmcoa-16", "fgvcaircraft", ("707-320", "A300B4"), None, ("Boeing 707-320", "A300B4"), ("Boeing 707-320", "A300B4")),
    ("tecoa-16", "sun397", ("a/bar/in_door",), ("in door bar",), ("bar in door",), ("in door bar",)),
    ("ttc-16", "caltech256", ("145.x",), ("motorbikes-101",), ("motorbikes",), ("motorbikes",)),
    ("tapt-11", "dtd", ("lace_like",), ("lace like",), ("lace like",), ("lace like",)),
    ("tecoa-16", "imagenet", ("n04355933", "n04356056"), None, ("sunglasses", "sunglasses"), ("sunglass", "sunglasses")),
]


@pytest.mark.parametrize(("suite", "name", "keys", "names", "reference", "clean"), NAMES, ids=[f"{row[0]}-{row[1]}" for row in NAMES])
def test_names_as_published_and_mended(suite, name, keys, names, reference, clean):
    assert suite_names(suite, name, keys, names or keys, "reference") == reference
    assert suite_names(suite, name, keys, names or keys, "clean") == clean


def test_names_of_clip_benchmark(monkeypatch):
    table = {"pets": ("Abyssinian", "head of a  dog"), "country211": ("Andorra", "United Arab Emirates")}
    monkeypatch.setattr(naming, "clip_benchmark", lambda name: table.get(naming.IN_CLIP_BENCHMARK[name], ()))
    assert suite_names("fare-13", "oxfordpets", ("a", "b"), ("a", "b"), "clean") == ("Abyssinian", "head of a dog")
    assert suite_names("fare-13", "oxfordpets", ("a", "b"), ("a", "b"), "reference")[1] == "head of a  dog"
    assert suite_names("fare-13", "oxfordpets", ("a", "b", "c"), ("a", "b", "c"), "clean") == ("a", "b", "c")
    assert suite_names("ttc-16", "country211", ("AD", "AE"), ("AD", "AE"), "clean") == table["country211"]
    table.clear()
    with pytest.raises(UserError, match=r"install robustclip\[clip-benchmark\]"):
        suite_names("ttc-16", "country211", ("AD", "AE"), ("AD", "AE"), "clean")


def test_the_package_itself_is_read():
    pytest.importorskip("clip_benchmark")
    assert len(naming.clip_benchmark("imagenet")) == 1000
    assert naming.clip_benchmark("country211")[:2] == ("Andorra", "United Arab Emirates")
    assert naming.clip_benchmark("dtd") == ()


def test_names_and_templates_from_files(tmp_path):
    files = {"a.txt": lines("tench", "", " goldfish "), "b.json": b'["tench", "goldfish"]', "c.json": b'{"n1": "tench"}', "d.json": b"[1]"}
    as_folder(tmp_path, files | {"t.txt": lines("a photo of a {c}.", "art of {}.")})
    assert names_file(str(tmp_path / "a.txt")) == names_file(str(tmp_path / "b.json")) == ["tench", "goldfish"]
    assert templates_file(str(tmp_path / "t.txt")) == ["a photo of a {}.", "art of {}."]
    assert renamed(("n1", "n2"), ("x", "y"), names_file(str(tmp_path / "c.json")), "c") == ("tench", "y")
    for wanted, said in ((["a"], "1 names for 2 classes, in the order x, y"), ({"n3": "a"}, "'n3' is no class of the set")):
        with pytest.raises(UserError, match=said):
            renamed(("n1", "n2"), ("x", "y"), wanted, "file")
    for name, said in (("d.json", "no class names"), ("e.txt", "no such file")):
        with pytest.raises(UserError, match=said):
            names_file(str(tmp_path / name))


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
