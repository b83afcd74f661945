"""What is wrong with a published set is named: label files that are missing, labels that are none, images that are not there, archives."""

import pickle
import stat
import zipfile

import numpy as np
import pytest
from layouts import as_zip, textures_of_coop
from miniatures import (
    aircraft,
    camelyon,
    cars,
    cifar100_binary,
    cifar_binary,
    cifar_python,
    classes,
    coop,
    flat,
    flowers,
    food,
    ground_truth,
    hugging_face,
    jpegs,
    lines,
    matlab,
    memes,
    midframes,
    own_list,
    parquet,
    pets,
    scenes,
    stl,
    textures,
    tiny,
    webdataset,
)
from sourcing import as_folder, image, left, stored

from robustclip.base.errors import UserError
from robustclip.data import zips
from robustclip.data.preparation import prepare

# name, its files, the one that is taken away, what is said
MISSING = [
    ("flowers", flowers, "setid.mat", "images of Oxford Flowers 102, but setid.mat is missing"),
    ("flowers102", flowers, "imagelabels.mat", "imagelabels.mat is missing"),
    ("dtd", textures, "labels/val1.txt", "labels/val1.txt is missing"),
    ("dtd", textures, "images/", "images/ is missing"),
    ("food101", lambda: food("json"), "meta/test.json", "meta/test.txt or .json is missing"),
    ("fgvcaircraft", aircraft, "data/variants.txt", "variants.txt is missing"),
    ("oxfordpets", pets, "annotations/test.txt", "annotations/test.txt is missing"),
    ("oxfordpets", pets, "annotations/", "'images' holds images without classes"),
    ("stanfordcars", cars, "devkit/cars_meta.mat", "cars_meta.mat is missing"),
    ("stanfordcars", cars, "cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat is missing"),
    ("imagenet", lambda: flat({}), "-", "what says their classes is missing: one of LOC_val_solution.csv"),
    ("imagenet", lambda: flat(ground_truth()), "devkit/data/meta.mat", "devkit's data/meta.mat is missing"),
    ("tinyimagenet", tiny, "val/val_annotations.txt", "val/val_annotations.txt is missing"),
    ("cifar10", cifar_python, "cifar-10-batches-py/data_batch_3", "4 of the five files"),
    ("cifar10", cifar_python, "cifar-10-batches-py/batches.meta", "batches.meta is missing"),
    ("cifar10", cifar_binary, "data_batch_3.bin", "4 of the five files"),
    ("cifar100", cifar100_binary, "test.bin", "test.bin is missing"),
    ("stl10", stl, "class_names.txt", "class_names.txt is missing"),
    ("stl10", stl, "test_y.bin", "test_y.bin is missing"),
    ("pcam", camelyon, "camelyonpatch_level_2_split_test_y.h5", "camelyonpatch_level_2_split_test_y.h5 is missing"),
    ("hatefulmemes", memes, "img/", "img/ is missing"),
    ("sun397", scenes, "b/bar/", "1 of the 3 folders of ClassName.txt hold no image, first b/bar"),
    ("wds", webdataset, "train/1.tar", "says 2 archives and 1 are there; 1.tar"),
]


@pytest.mark.parametrize(("name", "files", "gone", "said"), MISSING, ids=[f"{name}-{gone}" for name, _, gone, _ in MISSING])
def test_what_says_the_classes_must_be_there(tmp_path, name, files, gone, said):
    if name == "pcam":
        pytest.importorskip("h5py")
    kept = {each: data for each, data in files().items() if not each.startswith(gone)}
    with pytest.raises(UserError, match=said) as caught:
        prepare(str(tmp_path / "out"), name, [as_folder(tmp_path / "source", kept)])
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["flowers102", "mine"])
def test_flowers_without_labels_are_never_one_class(tmp_path, name):
    alone = {file: data for file, data in flowers().items() if file.startswith("jpg/")}
    with pytest.raises(UserError, match=r"imagelabels.mat and setid.mat are missing"):
        prepare(str(tmp_path / "out"), name, [as_folder(tmp_path / "source", alone)], split="train")


def test_a_folder_of_images_of_no_known_set_is_no_class(tmp_path):
    with pytest.raises(UserError, match="'images' holds images without classes"):
        prepare(str(tmp_path / "out"), "mine", [as_folder(tmp_path / "source", jpegs(["images/0.jpg"]))], split="train")


CAT = image(kind="JPEG")
TWO = {"cat.jpg": CAT, "dog.jpg": CAT}
# name, files, skipped {id: part of its reason}
SKIPPED = [
    ("dtd", {**textures(), "labels/test1.txt": lines("banded/gone.jpg", "dotted/dotted_2.jpg")}, {"test/banded/gone.jpg": "not there"}),
    ("dtd", {**textures(), "labels/test1.txt": lines(*["dotted/dotted_2.jpg"] * 2)}, {"test/dotted/dotted_2.jpg": "line 2: listed before"}),
    (
        "fgvcaircraft",
        {**aircraft(), "data/images_variant_test.txt": lines("0000002 707-320", "0000005 Zeppelin")},
        {"test/0000005.jpg": "'Zeppelin' is none of the 3 classes"},
    ),
    (
        "flowers102",
        {**flowers(), "setid.mat": matlab(trnid=[[1]], valid=[[4]], tstid=[[3, 7, 0]])},
        {"test/image_00007.jpg": "none of the 102", "test/image_00000.jpg": "none of the 102"},
    ),
    (
        "cifar10",
        {**cifar_binary(), "test_batch.bin": bytes([9]) + bytes(2 * 3073 - 1)},
        {"test/000000": "label 9 is none"},
    ),
    ("hf", {"test.parquet": parquet([0, 5, 1], ("cat", "dog"))}, {"test/test-000001": "label 5 is none of the 2 classes"}),
    ("coop", coop({"cat.jpg": CAT}, {"test": [["cat.jpg", 0, "cat"], ["dog.jpg", 1, "dog"]]}), {"coop-test/dog.jpg": "not there"}),
    (
        "mine",
        {**TWO, "test.txt": lines("cat.jpg 0", "dog.jpg 3"), "classes.txt": lines("cat", "dog")},
        {"test/dog.jpg": "'3' is none of the 2"},
    ),
    (
        "tinyimagenet",
        {**tiny(), "val/val_annotations.txt": lines("val_0.JPEG\tn01440764", "val_1.JPEG\tn09999999")},
        {"val/val_1.JPEG": "'n09999999' is none of the 3"},
    ),
    ("dtd", {**textures(), "images/banded/banded_2.jpg": b"?"}, {"test/banded/banded_2.jpg": "not an image in a known format"}),
]


@pytest.mark.parametrize(("name", "files", "skipped"), SKIPPED, ids=[f"{i}-{row[0]}" for i, row in enumerate(SKIPPED)])
def test_what_can_be_no_row_is_counted_with_its_reason(tmp_path, name, files, skipped):
    source = as_folder(tmp_path / "source", files)
    done = prepare(str(tmp_path / "out"), name, [source])
    found = {skip.id: skip.reason for skip in done.skipped}
    assert found.keys() == skipped.keys()
    for key, reason in skipped.items():
        assert reason in found[key]
    assert sum(done.card.skipped.values()) == len(skipped)
    with pytest.raises(UserError, match="nothing was written"):
        prepare(str(tmp_path / "strict"), name, [source], strict=True)


def test_a_label_beyond_the_classes_of_a_webdataset_is_counted(tmp_path):
    files = webdataset() | {"classnames.txt": lines("cat")}
    done = prepare(str(tmp_path / "out"), "wds", [as_folder(tmp_path / "source", files)])
    assert done.card.splits == {"train": 2, "test": 1}
    assert {skip.reason for skip in done.skipped} == {"label '1' is none of the 1 classes"}


def test_images_that_no_list_names_are_said(tmp_path):
    done = prepare(str(tmp_path / "out"), "dtd", [as_folder(tmp_path / "source", textures() | jpegs(["images/banded/extra.jpg"]))])
    assert done.said == ("1 images that no list names are left out, first images/banded/extra.jpg",)


REFUSED = [
    ("dtd", {**textures(), "labels/test1.txt": lines("../../etc/passwd.jpg")}, "points outside"),
    ("mine", {**TWO, "test.csv": lines("cat.jpg,a", "cat.jpg,b")}, "line 2: cat.jpg is of another class than in test.csv, line 1"),
    ("mine", {"a/cat.jpg": CAT, "b/cat.jpg": CAT, "test.csv": lines("cat.jpg,a")}, "may be a/cat.jpg or b/cat.jpg"),
    ("coop", coop(TWO, {"test": [["cat.jpg", 0, "cat"], ["dog.jpg", 2, "dog"]]}), "labels are not 0 to 1"),
    ("coop", coop(TWO, {"test": [["cat.jpg", 0, "cat"], ["dog.jpg", 0, "dog"]]}), "class 0 is 'dog' here and 'cat' before"),
    ("coop", coop(TWO, {"test": [["cat.jpg", "cat"]]}), r"row 0 is no \[image, label, class name\]"),
    ("coop", {**TWO, "split_zhou_x.json": b"{"}, "not valid JSON"),
    ("flowers102", {**flowers(), "imagelabels.mat": b"?" * 200}, "imagelabels.mat is no readable MATLAB file"),
    ("hf", {"test.parquet": b"PAR1"}, "no readable Parquet"),
    ("hf", {"train.parquet": parquet([0], ("a",)), "test.parquet": parquet([0], ("b",))}, "name different classes"),
    ("hf", {"part-0.parquet": parquet([0], ("a", "b"))}, "names a split; say which"),
    ("captions", {f"test/{i}.{kind}": data for i in range(21) for kind, data in (("jpg", CAT), ("txt", b"cat %d" % i))}, "are captions"),
    ("stl10", {**stl(), "test_X.bin": b"x"}, "1 bytes are not 3 images"),
    ("cifar10", {**cifar_binary(), "test_batch.bin": b"xy"}, "2 bytes are no rows of 3073"),
    ("wnids", classes("train/n00000001", "train/n00000002"), "2 wnids that are none of ImageNet's 1000"),
    ("both", hugging_face() | own_list() | midframes(), "it can be read as coop and as parquet; say which with --format coop"),
]


@pytest.mark.parametrize(("name", "files", "said"), REFUSED, ids=[f"{i}-{row[0]}" for i, row in enumerate(REFUSED)])
def test_what_cannot_be_read_is_refused(tmp_path, name, files, said):
    with pytest.raises(UserError, match=said) as caught:
        prepare(str(tmp_path / "out"), name, [as_folder(tmp_path / "source", files)])
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("name", "files", "dead"),
    [("hf", hugging_face, "data/train-00001-of-00002.parquet"), ("stl10", stl, "test_X.bin"), ("flowers102", flowers, "setid.mat")],
)
def test_a_dead_link_among_the_files_of_a_set_is_named(tmp_path, name, files, dead):
    source = as_folder(tmp_path / "source", {each: data for each, data in files().items() if each != dead})
    (tmp_path / "source" / dead).symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"{dead} cannot be read \(a link that leads to no file\)|0 bytes are not 3 images"):
        prepare(str(tmp_path / "out"), name, [source])


@pytest.mark.parametrize("source", ["x/{3..1}.tar", "x/{0..9999999}.tar"])
def test_a_range_of_shards_that_is_none_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="is no range of shards"):
        prepare(str(tmp_path / "out"), "wds", [source])


def test_a_range_keeps_its_zeros_and_names_the_shard_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"x/008\.tar: no such file"):
        prepare(str(tmp_path / "out"), "wds", [f"{tmp_path}/x/{{008..011}}.tar"])


def test_a_format_can_be_asked_for(tmp_path):
    source = as_folder(tmp_path / "source", textures_of_coop())
    assert prepare(str(tmp_path / "out"), "mine", [source], format="dtd").card.splits == {"train": 2, "val": 2, "test": 2}
    with pytest.raises(UserError, match="as coop and as dtd; say which with --format coop"):
        prepare(str(tmp_path / "out"), "other", [source])
    with pytest.raises(UserError, match="expected what --format pcam reads"):
        prepare(str(tmp_path / "out"), "other", [source], format="pcam")
    with pytest.raises(UserError, match=r"no format 'dtt' \(did you mean dtd\?\)"):
        prepare(str(tmp_path / "out"), "other", [source], format="dtt")


class _Code:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.parametrize("thing", [_Code(), np.random.default_rng, {"a": _Code()}])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, thing):
    files = cifar_python() | {"cifar-10-batches-py/test_batch": pickle.dumps(thing)}
    with pytest.raises(UserError, match=r"test_batch: this pickle is damaged or not to be trusted \(it would run "):
        prepare(str(tmp_path / "out"), "cifar10", [as_folder(tmp_path / "source", files)])
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_damaged_pickle_is_named(tmp_path, cut):
    files = cifar_python()
    files["cifar-10-batches-py/test_batch"] = files["cifar-10-batches-py/test_batch"][:cut]
    with pytest.raises(UserError, match="test_batch: this pickle is damaged"):
        prepare(str(tmp_path / "out"), "cifar10", [as_folder(tmp_path / "source", files)])


@pytest.mark.parametrize("name", ["../outside/0.jpg", "/etc/0.jpg", "train/../../0.jpg", "..\\outside\\0.jpg"])
def test_a_zip_that_leads_outside_is_refused(tmp_path, name):
    source = as_zip(tmp_path / "train.zip", {"cat/0.jpg": CAT, name: CAT})
    with pytest.raises(UserError, match="points outside its source; this archive is not to be trusted"):
        prepare(str(tmp_path / "out"), "mine", [source])
    assert left(tmp_path / "out") == []


def test_a_zip_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "FREE", 1 << 16)
    source = tmp_path / "train.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.jpg", bytes(1 << 20))
    with pytest.raises(UserError, match=r"\d+ bytes would become 1048576; this archive is not to be trusted"):
        prepare(str(tmp_path / "out"), "mine", [str(source)])


def test_a_damaged_zip_is_named_and_what_is_no_file_in_it_is_counted(tmp_path):
    source = tmp_path / "train.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("cat/0.jpg", CAT)
        link = zipfile.ZipInfo("cat/1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "0.jpg")
    done = prepare(str(tmp_path / "out"), "mine", [str(source)])
    assert [(skip.id, skip.reason) for skip in done.skipped] == [("train/cat/1.jpg", "a link in a zip archive")]
    data = bytearray(source.read_bytes())
    at = data.index(CAT[20:60])
    data[at] ^= 255
    source.write_bytes(data)
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare(str(tmp_path / "other"), "mine", [str(source)])
    source.write_bytes(data[:-30])
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare(str(tmp_path / "other"), "mine", [str(source)])


def test_an_image_of_two_splits_is_in_both(tmp_path):
    source = as_folder(tmp_path / "source", scenes(lists=True))
    card = prepare(str(tmp_path / "out"), "sun397", [source]).card
    rows = stored(card, "all") | stored(card, "train")
    assert rows["all/a/abbey/sun_0.jpg"] == rows["train/a/abbey/sun_0.jpg"]
