"""What classes are called: by the rules of suites, as published and mended, by packages, by files."""

from collections import Counter

import pytest
from miniatures import lines
from sourcing import as_folder

from robustclip.base.errors import UserError
from robustclip.data import naming
from robustclip.data.naming import imagenet_names, names_file, renamed, suite_names, templates_file

# suite, set, keys, names, reference, clean
NAMES = [
    ("tecoa-16", "caltech101", ("Faces", "Faces_easy", "ant"), None, ("person", "person", "ant"), ("off center face", "face", "ant")),
    ("mmcoa-16", "caltech101", ("Faces", "Faces_easy"), None, ("faces", "faces easy"), ("off center face", "face")),
    ("tecoa-16", "stanfordcars", ("Acura RL 2012",), None, ("acura rl",), ("Acura RL 2012",)),
    ("mmcoa-16", "fgvcaircraft", ("707-320", "A300B4"), None, ("Boeing 707-320", "A300B4"), ("Boeing 707-320", "A300B4")),
    ("tecoa-16", "sun397", ("a/bar/in_door",), ("in door bar",), ("bar in door",), ("in door bar",)),
    ("ttc-16", "caltech256", ("145.x",), ("motorbikes-101",), ("motorbikes",), ("motorbikes",)),
    ("tapt-11", "dtd", ("lace_like",), ("lace like",), ("lace like",), ("lace like",)),
    ("tecoa-16", "imagenet", ("n02113186", "n02963159"), None, ("cardigan", "cardigan"), ("Cardigan Welsh Corgi", "cardigan")),
    ("ttc-16", "imagenet", ("n04355933", "n04356056"), None, ("sunglasses", "sunglasses"), ("sunglass", "sunglasses")),
]


@pytest.mark.parametrize(("suite", "name", "keys", "names", "reference", "clean"), NAMES, ids=[f"{row[0]}-{row[1]}" for row in NAMES])
def test_names_as_published_and_mended(suite, name, keys, names, reference, clean):
    assert suite_names(suite, name, keys, names or keys, "reference") == reference
    assert suite_names(suite, name, keys, names or keys, "clean") == clean


def test_tecoas_imagenet_has_the_first_words_of_its_synsets_three_of_them_twice():
    for keys in (naming.wnids(), tuple(map(str, range(1000)))):
        names = suite_names("tecoa-16", "imagenet", keys, keys, "reference")
        assert (names[0], names[388], names[398]) == ("tench", "giant panda", "abacus")
        assert {name for name, times in Counter(names).items() if times > 1} == {"crane", "maillot", "cardigan"}
        assert suite_names("ttc-16", "imagenet", keys, keys, "reference") == tuple(imagenet_names("reference").values())


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
