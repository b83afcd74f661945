"""Every published set in every layout it comes in: which format it is read as, its classes in order, its splits, how many images."""

from functools import partial

import numpy as np
import pytest
from layouts import CAFFE, CARS, LABELS, LAYOUTS, SHARDS, SHARKS, folder
from miniatures import (
    aircraft,
    cars,
    cifar100_binary,
    cifar100_python,
    cifar_binary,
    cifar_python,
    classes,
    flat,
    flowers,
    food,
    ground_truth,
    hugging_face,
    memes,
    midframes,
    own_list,
    parquet,
    pets,
    scenes,
    shard,
    solution,
    stl,
    textures,
    tiny,
    webdataset,
)
from sourcing import image, stored
from timm.data import ImageNetInfo

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.formats import FORMATS
from robustclip.data.formats.base import Asked
from robustclip.data.images import decode
from robustclip.data.naming import imagenet_names, written_out
from robustclip.data.preparation import prepare
from robustclip.data.sets import SETS


@pytest.mark.parametrize("layout", LAYOUTS, ids=[f"{i}-{each.name}" for i, each in enumerate(LAYOUTS)])
def test_a_set_in_a_layout(tmp_path, layout):
    if layout.name == "pcam":
        pytest.importorskip("h5py")
    done = prepare(str(tmp_path / "out"), layout.name, layout.make(tmp_path), **layout.options)
    assert (done.format, done.card.splits, done.card.class_names) == (layout.format, layout.splits, layout.classes)
    assert done.skipped == ()


def test_what_the_protocols_leave_out_is_said(tmp_path):
    done = prepare(str(tmp_path / "out"), "caltech101", LAYOUTS[0].make(tmp_path))
    assert done.said == ("left out by the set's protocols: BACKGROUND_Google",)


def test_every_format_and_every_set_stands_in_the_table():
    assert len({layout.format for layout in LAYOUTS}) == len(FORMATS)
    assert {layout.name for layout in LAYOUTS} >= {*SETS}


def labels(tmp_path, name, files, split, **options):
    """Return {id: class name} of a split of a set that is prepared from a folder."""
    card = prepare(str(tmp_path / "out"), name, folder(files)(tmp_path), **options).card
    return {key: said for key, (_, said) in stored(card, split).items()}


def test_every_image_has_its_own_label(tmp_path):
    assert labels(tmp_path / "a", "imagenet", lambda: flat(ground_truth()), "val") == {
        f"val/ILSVRC2012_val_{i:08d}.JPEG": name for i, name in zip((1, 2, 3), ("great white shark", "tench", "tench"))
    }
    names = SETS["flowers102"].asked(None).names
    found = labels(tmp_path / "b", "flowers102", flowers, "test")
    assert found == {f"test/image_{i:05d}.jpg": names[place - 1] for i, place in ((3, 1), (5, 102), (6, 77))}
    hummer, acura = CARS[2]
    assert labels(tmp_path / "c", "stanfordcars", cars, "train") == {
        "train/00001.jpg": acura, "train/00002.jpg": hummer, "train/00003.jpg": acura
    }  # fmt: skip
    assert labels(tmp_path / "d", "stl10", stl, "test") == {f"test/{i:06d}": name for i, name in enumerate(("bird", "airplane", "bird"))}
    assert {*labels(tmp_path / "e", "pets", webdataset, "train").items()} == {
        (f"train/{shard}/s{i:07d}", ("cat", "dog")[(shard + i) % 2]) for shard in (0, 1) for i in (0, 1)
    }
    assert labels(tmp_path / "f", "imagenet-v2", lambda: classes(*map(str, (0, 2, 10)), n=1), "test") == {
        f"test/{i}/0.jpg": str(i) for i in (0, 2, 10)
    }


BY_HAND = [
    ("dtd", textures, "test", {"banded/banded_2.jpg": "banded", "dotted/dotted_2.jpg": "dotted"}),
    ("food101", partial(food, "json"), "test", {"apple_pie/3.jpg": "apple pie", "waffles/3.jpg": "waffles"}),
    ("fgvcaircraft", aircraft, "val", {"0000001.jpg": "707-320", "0000004.jpg": "F/A-18"}),
    ("oxfordpets", pets, "test", {"Abyssinian_2.jpg": "Abyssinian", "japanese_chin_2.jpg": "Japanese Chin"}),
    ("sun397", partial(scenes, lists=True), "test", {"a/abbey/sun_1.jpg": "abbey"}),
    ("ucf101", midframes, "coop-val", {"Apply_Eye_Makeup/v_1.jpg": "Apply Eye Makeup", "Archery/v_1.jpg": "Archery"}),
    ("imagenet", lambda: flat(solution()), "val", {f"ILSVRC2012_val_{i:08d}.JPEG": SHARKS[k] for i, k in ((1, 2), (2, 0), (3, 0))}),
    ("imagenet", lambda: flat(CAFFE), "val", {f"ILSVRC2012_val_{i:08d}.JPEG": SHARKS[k] for i, k in ((1, 2), (2, 0), (3, 0))}),
    ("imagenet", lambda: flat(LABELS), "val", {f"ILSVRC2012_val_{i:08d}.JPEG": SHARKS[k] for i, k in ((1, 2), (2, 0), (3, 0))}),
    ("tinyimagenet", tiny, "val", {f"val_{i}.JPEG": SHARKS[i] for i in range(3)}),
    ("cifar10", cifar_python, "test", {"000000": "airplane", "000001": "automobile", "000002": "airplane"}),
    ("cifar10", cifar_binary, "test", {"000000": "airplane", "000001": "automobile", "000002": "airplane"}),
    ("cifar100", cifar100_python, "test", {"000000": "apple", "000001": "aquarium fish"}),
    ("cifar100", cifar100_binary, "test", {"000000": "apple", "000001": "aquarium fish"}),
    ("hatefulmemes", memes, "test", {f"img/{i:05d}.png": name for i, name in ((4, "hateful"), (5, "not hateful"), (6, "hateful"))}),
    ("zoo", hugging_face, "test", {"test-00000-of-00001-000000": "zebra", "test-00000-of-00001-000001": "cat"}),
    ("mine", own_list, "train", {"pics/0.jpg": "dog", "pics/1.jpg": "grey cat"}),
]


@pytest.mark.parametrize(("name", "files", "split", "said"), BY_HAND, ids=[f"{i}-{row[0]}" for i, row in enumerate(BY_HAND)])
def test_the_labels_of_a_split(tmp_path, name, files, split, said):
    assert labels(tmp_path, name, files, split) == {f"{split}/{key}": label for key, label in said.items()}


def test_pixels_of_rows_are_those_of_the_file(tmp_path):
    files = cifar100_binary()
    card = prepare(str(tmp_path / "out"), "cifar100", folder(lambda: files)(tmp_path)).card
    row = np.frombuffer(files["test.bin"], np.uint8)[2 : 2 + 3072].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (decode(stored(card, "test")["test/000000"][0]) == row).all()
    files = stl()
    card = prepare(str(tmp_path / "stl"), "stl10", folder(lambda: files)(tmp_path / "stl")).card
    column_first = np.frombuffer(files["test_X.bin"], np.uint8)[: 3 * 96 * 96].reshape(3, 96, 96).transpose(2, 1, 0)
    assert (decode(stored(card, "test")["test/000000"][0]) == column_first).all()
    assert card.native_size == 96


def test_memes_are_squashed_as_their_protocols_mean_it(tmp_path):
    assert prepare(str(tmp_path / "out"), "hatefulmemes", folder(memes)(tmp_path)).card.native_size == 224


def test_imagenets_numbers_are_written_out_where_all_are_there():
    numbers = tuple(map(str, range(1000)))
    assert written_out(numbers, numbers, Asked(name="imagenet-v2"), None)[:2] == SHARKS[:2]
    assert written_out(numbers, numbers, Asked(name="mine"), None) == numbers
    assert written_out(numbers[:9], numbers[:9], Asked(name="imagenet-v2"), None) == numbers[:9]


def test_imagenets_synsets_are_written_out_where_all_are_there(tmp_path):
    synsets = [*ImageNetInfo().label_descriptions()]
    synsets[517] = "crane2"  # the machine, which is told apart from the bird
    source = folder(lambda: {"validation-00000-of-00001.parquet": parquet([0, 517], synsets)})(tmp_path)
    card = prepare(str(tmp_path / "out"), "imagenet", source).card
    assert card.class_names == tuple(imagenet_names().values())
    assert {name for _, name in stored(card, "val").values()} == {"tench", "construction crane"}
    assert prepare(str(tmp_path / "out"), "mine", source).card.class_names[0] == "tench, Tinca tinca"
    turned = [*reversed(synsets)]
    assert written_out(turned, turned, Asked(name="imagenet"), None) == tuple(turned)


# where the samples of webdataset archives lie and what they are called, and the split that each is of
SPLITS = [
    ("test/0.tar", ("train_000012", "val.s1"), {"test": 2}),  # of a class "train": a sample's own name says nothing
    ("test/0.tar", ("train/1", "train/2"), {"test": 2}),
    ("mine-test-0.tar", ("val/1", "val/2"), {"test": 2}),
    ("0.tar", ("train/1", "test/1"), {"train": 1, "test": 1}),  # nothing else says it
]


@pytest.mark.parametrize(("archive", "keys", "splits"), SPLITS)
def test_where_an_archive_lies_says_the_split_before_what_its_samples_are_called(tmp_path, archive, keys, splits):
    source = folder(lambda: {archive: shard(dict.fromkeys(keys, "0"))})(tmp_path)
    assert prepare(str(tmp_path / "out"), "wds", source).card.splits == splits


def test_a_folder_around_an_archive_says_the_split_and_a_samples_own_name_never(tmp_path):
    folder(lambda: {"test/0.tar": shard({"train_1": "0"}), "0.tar": shard({"train_1": "0"})})(tmp_path)
    assert prepare(str(tmp_path / "out"), "wds", [str(tmp_path / "source" / "test" / "0.tar")]).card.splits == {"test": 1}
    with pytest.raises(UserError, match=r"neither 0/train_1\.webp nor a folder around it names a split; say which"):
        prepare(str(tmp_path / "other"), "wds", [str(tmp_path / "source" / "0.tar")])


@pytest.mark.parametrize(
    "files",
    [
        {"data/test/0.tar": shard({"s1": "0"})},
        {"data/test-00000-of-00001.parquet": parquet(["cat", "dog"])},
        {"data/test.txt": b"0.jpg cat\n", **classes("data", n=1)},
        {"data/test/cat/0.jpg": image()},
    ],
    ids=["webdataset", "parquet", "list", "folders"],
)
def test_a_split_that_names_speak_against_is_refused(tmp_path, files):
    source = folder(lambda: files)(tmp_path)
    with pytest.raises(UserError, match="says 'test', but --split train was given; leave --split out"):
        prepare(str(tmp_path / "out"), "mine", source, split="train")
    assert prepare(str(tmp_path / "out"), "mine", source, split="test").card.splits.keys() == {"test"}


def test_a_split_that_the_folder_around_a_set_speaks_against_is_refused(tmp_path):
    mine = folder(lambda: {"test/mine/0.tar": shard({"s1": "0"})})(tmp_path)[0] + "/test/mine"
    with pytest.raises(UserError, match="says 'test', but --split train was given"):
        prepare(str(tmp_path / "out"), "mine", [mine], split="train")
    assert prepare(str(tmp_path / "out"), "mine", [mine]).card.splits == {"test": 1}


def test_imagenets_names_are_all_its_own_when_clean():
    assert len(set(imagenet_names("clean").values())) == 1000
    assert len(set(imagenet_names("reference").values())) == 998
    assert imagenet_names()["n04355933"] == "sunglass"


def test_object_stores_are_read_like_folders(tmp_path, monkeypatch):
    source = folder(webdataset)(tmp_path)[0]
    system, _ = storage.filesystem(source)
    monkeypatch.setattr(storage, "filesystem", lambda path: (system, path.replace("s3://bucket", source)))
    done = prepare(str(tmp_path / "out"), "pets", ["s3://bucket"])
    assert (done.format, done.card.splits, done.card.class_names) == (*SHARDS, ("cat", "dog"))
    assert done.card.templates == ("a drawing of a {}.",)
