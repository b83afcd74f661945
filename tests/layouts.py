"""The table of sets and layouts: how each is made in a folder, what it is then called, and what must come of it."""

import gzip
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from miniatures import (
    WNIDS,
    aircraft,
    camelyon,
    cars,
    cifar100_binary,
    cifar100_python,
    cifar_binary,
    cifar_python,
    classes,
    coop,
    flat,
    flowers,
    food,
    ground_truth,
    huge,
    hugging_face,
    jpegs,
    lines,
    memes,
    midframes,
    own_list,
    parquet,
    pets,
    scenes,
    solution,
    stl,
    tar_bytes,
    textures,
    tiny,
    webdataset,
)
from sourcing import as_folder, as_tar

from robustclip.data.sets import SETS

Files = Mapping[str, bytes]
Make = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Layout:
    """A set in one layout: its name, how it is made, the format it is read as, images a split, class names in order, options of prepare."""

    name: str
    make: Make
    format: str
    splits: dict[str, int]
    classes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def under(prefix: str, files: Callable[[], Files]) -> Callable[[], Files]:
    """Return what makes the files in a folder of theirs."""
    return lambda: {f"{prefix}/{name}": data for name, data in files().items()}


def folder(files: Callable[[], Files]) -> Make:
    """Return what makes a folder of files."""
    return lambda path: [as_folder(path / "source", files())]


def packed(name: str, files: Callable[[], Files], mode: str = "w:gz") -> Make:
    """Return what makes a tar archive."""
    return lambda path: [as_tar(path / name, files(), mode)]


def zip_bytes(files: Files) -> bytes:
    """Return a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def as_zip(path: Path, files: Files) -> str:
    """Write a zip archive and return where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(files))
    return str(path)


def zipped(name: str, files: Callable[[], Files]) -> Make:
    """Return what makes a zip archive."""
    return lambda path: [as_zip(path / name, files())]


def beside(files: Callable[[], Mapping[str, Files | bytes]]) -> Make:
    """Return what makes a folder that holds archives, {name: their files}, and files, {name: bytes}."""

    def make(path: Path) -> list[str]:
        for name, inside in files().items():
            if not isinstance(inside, bytes):
                inside = zip_bytes(inside) if name.endswith("zip") else tar_bytes(inside, "w:gz" if name.endswith("gz") else "w")
            as_folder(path / "source", {name: inside})
        return [str(path / "source")]

    return make


def imagenet_archives() -> dict[str, Files]:
    """Return ImageNet as it is downloaded: a tar of tars, a flat tar, and the devkit."""
    train = {f"{wnid}.tar": tar_bytes(jpegs(f"{wnid}_{i}.JPEG" for i in range(2))) for wnid in WNIDS}
    val = {name.partition("/")[2]: data for name, data in flat({}).items() if name.startswith("val/")}
    devkit = {f"ILSVRC2012_{name}": data for name, data in ground_truth().items()}
    return {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": val, "ILSVRC2012_devkit_t12.tar.gz": devkit}


def kaggle() -> Files:
    """Return ImageNet as Kaggle has it."""
    return under("ILSVRC/Data/CLS-LOC", lambda: flat({}))() | solution()


def flowers_archives(unpacked: bool) -> dict[str, Files | bytes]:
    """Return Flowers 102 as it is downloaded, its images also unpacked or not."""
    files = flowers()
    images = {name: data for name, data in files.items() if "jpg" in name}
    return {"102flowers.tgz": images} | {name: data for name, data in files.items() if unpacked or name.endswith(".mat")}


def images_packed(name: str, files: Files) -> dict[str, Files | bytes]:
    """Return files whose images are in an archive of that name, and what lists them beside it."""
    images = {each: data for each, data in files.items() if each.endswith("jpg")}
    return {name: images} | {each: data for each, data in files.items() if each not in images}


def flowers_half_unpacked() -> dict[str, Files | bytes]:
    """Return Flowers 102 as it is downloaded, its archive unpacked but for an image."""
    files = flowers_archives(True)
    return {name: data for name, data in files.items() if name != "jpg/image_00003.jpg"}


def named_parquet() -> Files:
    """Return a set as Hugging Face has it, with the names of its classes."""
    names = ("airplane", "automobile")
    return {f"plain_text/{part}-00000-of-00001.parquet": parquet([0, 1], names) for part in ("train", "test")}


def pets_archives() -> dict[str, Files]:
    """Return Oxford Pets as it is downloaded."""
    return {f"{part}.tar.gz": {name: data for name, data in pets().items() if name.startswith(part)} for part in ("images", "annotations")}


def pets_sources(path: Path) -> list[str]:
    """Make the archives of Oxford Pets as sources of their own."""
    return [as_tar(path / name, files) for name, files in pets_archives().items()]


def braces(path: Path) -> list[str]:
    """Make webdataset shards, given by a range in braces."""
    return [folder(webdataset)(path)[0] + "/train/{0..1}.tar"]


def textures_of_coop() -> Files:
    """Return DTD as CoOp has it: the authors' files with CoOp's own splits beside them."""
    return coop(textures(), {"train": [["banded/banded_0.jpg", 0, "banded"]], "test": [["dotted/dotted_0.jpg", 1, "dotted"]]})


def land_of_coop() -> Files:
    """Return EuroSAT as CoOp has it."""
    return coop(
        jpegs(["2750/Forest/0.jpg", "2750/River/0.jpg"]), {"train": [["Forest/0.jpg", 0, "Forest"]], "test": [["River/0.jpg", 1, "River"]]}
    )


FOLDERS = "class folders"
SHARKS = ("tench", "goldfish", "great white shark")
FLOWERS = ("Flowers 102's MATLAB labels", {"train": 2, "val": 1, "test": 3}, SETS["flowers102"].asked(None).names)
THREE = {"train": 2, "val": 2, "test": 2}
TEXTURES = ("DTD's lists", THREE, ("banded", "dotted"))
FOOD = ("Food-101's lists", {"train": 4, "test": 2}, ("apple pie", "waffles"))
PETS = ("Oxford Pets' lists", {"train": 2, "test": 2}, ("Abyssinian", "Japanese Chin"))
SCENES, ABBEYS = "SUN397's ClassName.txt", ("abbey", "outdoor apartment building", "bar")
CARS = ("Stanford Cars' devkit", {"train": 3, "test": 2}, ("AM General Hummer SUV 2000", "Acura RL Sedan 2012"))
FLAT = ("ImageNet with flat validation images", {"train": 6, "val": 3}, SHARKS)
TEN = ({"train": 10, "test": 3}, ("airplane", "automobile"))
HUNDRED = ({"train": 4, "test": 2}, ("apple", "aquarium fish"))
PYTHON, BINARY = "CIFAR's Python version", "CIFAR's binary version"
COOP, COOPS = "CoOp's split_zhou JSON", {"coop-train": 1, "coop-test": 1}
UCF = {"coop-train": 2, "coop-val": 2, "coop-test": 2}
STL = ("STL-10's binary files", {"train": 2, "test": 3}, ("airplane", "bird"))
PCAM = ("PatchCamelyon's HDF5", {"train": 3, "val": 1, "test": 2}, SETS["pcam"].asked(None).names)
MEMES = ("Hateful Memes' JSON lines", {"train": 2, "val": 2, "test": 3}, ("not hateful", "hateful"))
SHARDS, ANIMALS = ("webdataset", {"train": 4, "test": 2}), ("cat", "dog")
FACE = "Hugging Face Parquet"
LISTED = ("a list of images and classes", {"train": 2, "test": 1}, ("dog", "grey cat"))
LABELS = {"imagenet_2012_validation_synset_labels.txt": lines(WNIDS[2], WNIDS[0], WNIDS[0])}
CAFFE = {"val.txt": lines(*(f"ILSVRC2012_val_{i:08d}.JPEG {k}" for i, k in zip((1, 2, 3), (2, 0, 0))))}
AS_COOP = {"format": "coop"}
BACKGROUND = [f"101_ObjectCategories/{name}" for name in ("BACKGROUND_Google", "Faces", "ant")]
EASY = {"101_ObjectCategories.tar.gz": classes("101_ObjectCategories/Faces_easy", "101_ObjectCategories/ant")}
OBJECTS = [f"256_ObjectCategories/{name}" for name in ("001.ak47", "145.motorbikes-101")]
SPLIT_WNIDS = [f"{split}/{wnid}" for split in ("train", "val") for wnid in WNIDS]
SECOND = [f"imagenetv2-matched-frequency-format-val/{i}" for i in (0, 2, 10)]
COUNTRIES = [f"country211/{split}/{key}" for split in ("train", "valid", "test") for key in ("AD", "AE")]
EACH_FOUR = {"train": 4, "val": 4, "test": 4}
UNPACKED = {"train.tar.gz": classes("cat", "dog"), "validation.tar": classes("validation/cat", "validation/dog")}

LAYOUTS = [
    Layout("caltech101", folder(lambda: classes(*BACKGROUND)), FOLDERS, {"all": 4}, ("Faces", "ant")),
    Layout("caltech101", beside(lambda: EASY), FOLDERS, {"all": 4}, ("Faces easy", "ant")),
    Layout("caltech256", packed("256.tar", lambda: classes(*OBJECTS), "w"), FOLDERS, {"all": 4}, ("ak47", "motorbikes-101")),
    Layout("dtd", folder(under("dtd", textures)), *TEXTURES),
    Layout("dtd", packed("dtd-r1.0.1.tar.gz", under("dtd", textures)), *TEXTURES),
    Layout("dtd", folder(textures_of_coop), *TEXTURES),
    Layout("dtd", folder(textures_of_coop), COOP, COOPS, ("banded", "dotted"), AS_COOP),
    Layout("food101", folder(partial(food, "json")), *FOOD),
    Layout("food101", zipped("food.zip", under("food-101", partial(food, "txt"))), *FOOD),
    Layout("fgvcaircraft", folder(aircraft), "FGVC Aircraft's lists", THREE, ("707-320", "A300B4", "F/A-18")),
    Layout("oxfordpets", folder(pets), *PETS),
    Layout("oxfordpets", beside(pets_archives), *PETS),
    Layout("oxfordpets", pets_sources, *PETS),
    Layout("oxfordpets", folder(lambda: pets() | {"images/Abyssinian_1.jpg": huge()}), *PETS),
    Layout("sun397", folder(scenes), SCENES, {"all": 6}, ABBEYS),
    Layout("sun397", folder(under("SUN397", partial(scenes, lists=True))), SCENES, {"all": 6, "train": 3, "test": 1}, ABBEYS),
    Layout("ucf101", folder(midframes), COOP, UCF, ("Apply Eye Makeup", "Archery")),
    Layout("ucf101", beside(lambda: images_packed("UCF-101-midframes.zip", midframes())), COOP, UCF, ("Apply Eye Makeup", "Archery")),
    Layout("eurosat", folder(land_of_coop), FOLDERS, {"all": 2}, ("Forest", "River")),
    Layout("eurosat", folder(land_of_coop), COOP, COOPS, ("Forest", "River"), AS_COOP),
    Layout("eurosat", zipped("EuroSAT.zip", lambda: classes("2750/Forest", "2750/River")), FOLDERS, {"all": 4}, ("Forest", "River")),
    Layout("flowers102", folder(flowers), *FLOWERS),
    Layout("flowers102", beside(partial(flowers_archives, False)), *FLOWERS),
    Layout("flowers102", beside(partial(flowers_archives, True)), *FLOWERS),
    Layout("flowers102", beside(flowers_half_unpacked), *FLOWERS),
    Layout("stanfordcars", folder(cars), *CARS),
    Layout("stanfordcars", folder(under("stanford_cars", cars)), *CARS),
    Layout("imagenet", folder(lambda: classes(*SPLIT_WNIDS, suffix=".JPEG")), FOLDERS, {"train": 6, "val": 6}, SHARKS),
    Layout("imagenet", folder(lambda: flat(ground_truth())), *FLAT),
    Layout("imagenet", folder(kaggle), *FLAT),
    Layout("imagenet", folder(lambda: flat(LABELS)), *FLAT),
    Layout("imagenet", folder(lambda: flat(CAFFE)), *FLAT),
    Layout("imagenet", beside(imagenet_archives), *FLAT),
    Layout("imagenet-v2", folder(lambda: classes(*SECOND, suffix=".jpeg")), FOLDERS, {"test": 6}, ("0", "2", "10")),
    Layout("imagenet-a", folder(lambda: classes(*WNIDS)), FOLDERS, {"test": 6}, SHARKS),
    Layout("imagenet-r", packed("r.tar", under("imagenet-r", lambda: classes(*WNIDS[1:])), "w"), FOLDERS, {"test": 4}, SHARKS[1:]),
    Layout("imagenet-sketch", zipped("s.zip", under("sketch", lambda: classes(*WNIDS, suffix=".JPEG"))), FOLDERS, {"test": 6}, SHARKS),
    Layout("tinyimagenet", folder(under("tiny-imagenet-200", tiny)), "Tiny-ImageNet", {"train": 6, "val": 3}, SHARKS),
    Layout("cifar10", folder(cifar_python), PYTHON, *TEN),
    Layout("cifar10", packed("cifar-10-python.tar.gz", cifar_python), PYTHON, *TEN),
    Layout("cifar10", folder(cifar_binary), BINARY, *TEN),
    Layout("cifar10", folder(named_parquet), FACE, {"train": 2, "test": 2}, ("airplane", "automobile")),
    Layout("cifar100", folder(cifar100_python), PYTHON, *HUNDRED),
    Layout("cifar100", folder(cifar100_binary), BINARY, *HUNDRED),
    Layout("stl10", packed("stl10_binary.tar.gz", under("stl10_binary", stl)), *STL),
    Layout("stl10", folder(webdataset), *SHARDS, ANIMALS),
    Layout("pcam", folder(camelyon), *PCAM),
    Layout("pcam", folder(lambda: {f"{name}.gz": gzip.compress(data) for name, data in camelyon().items()}), *PCAM),
    Layout("hatefulmemes", folder(memes), *MEMES),
    Layout("country211", folder(lambda: classes(*COUNTRIES)), FOLDERS, EACH_FOUR, ("AD", "AE")),
    Layout("pets", folder(webdataset), *SHARDS, ANIMALS),
    Layout("pets", folder(partial(webdataset, "json", names=False)), *SHARDS, ("class 0", "class 1")),
    Layout("pets", folder(partial(webdataset, "txt", names=False)), *SHARDS, ANIMALS),
    Layout("pets", braces, "webdataset", {"train": 4}, ("class 0", "class 1")),
    Layout("zoo", folder(hugging_face), FACE, {"train": 3, "test": 2}, ("cat", "sea lion", "zebra")),
    Layout("zoo", folder(lambda: {"test.parquet": parquet(["dog", "cat"], column="class")}), FACE, {"test": 2}, ANIMALS),
    Layout("mine", folder(own_list), *LISTED),
    Layout("mine", beside(lambda: images_packed("images.tar", own_list())), *LISTED),
    Layout("mine", zipped("test.zip", lambda: classes("cat", "dog")), FOLDERS, {"test": 4}, ANIMALS),
    Layout("mine", beside(lambda: UNPACKED), FOLDERS, {"train": 4, "val": 4}, ANIMALS),
]
