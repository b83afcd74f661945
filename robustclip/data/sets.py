"""The sets of the published suites, a row each: what they are called, how they are published, how large they are, who may use them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from robustclip.data.formats.base import Asked


@dataclass(frozen=True)
class KnownSet:
    """A set by its name under <out>/data: `folders` it usually lies in, its `formats`, its `classes` and `images` per split as published.

    `whole`: the split that holds all images where the set has no other; `without`: class folders that its protocols leave out.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    formats: tuple[str, ...]
    classes: int
    images: dict[str, int]
    url: str
    licence: str
    whole: str | None = None
    without: tuple[str, ...] = ()
    names: tuple[str, ...] | Callable[[], tuple[str, ...]] = field(default=(), compare=False)
    squash: int | None = None

    def asked(self, split: str | None) -> Asked:
        """Return what a reader may know of it."""
        names = self.names() if callable(self.names) else self.names
        return Asked(split, self.whole, self.without, names, self.squash, self.name)


@cache
def _flowers() -> tuple[str, ...]:
    from torchvision.datasets import Flowers102

    return tuple(Flowers102.classes)


_RESEARCH = "no licence given; research use, images belong to their photographers"
_IMAGENET = "ImageNet's terms of access: research, not commercial"
_ANY = ("webdataset", "parquet", "folders")

SETS: dict[str, KnownSet] = {
    row.name: row
    for row in (
        KnownSet(
            "imagenet",
            "ImageNet-1k",
            ("imagenet", "imagenet1k", "imagenet-1k", "ILSVRC2012", "ILSVRC", "wds_imagenet1k"),
            ("imagenet-val", *_ANY, "list"),
            1000,
            {"train": 1_281_167, "val": 50_000},
            "https://image-net.org/download.php",
            _IMAGENET,
        ),
        KnownSet(
            "imagenet-v2",
            "ImageNet-V2",
            ("imagenet-v2", "imagenetv2", "imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency", "wds_imagenetv2"),
            _ANY,
            1000,
            {"test": 10_000},
            "https://github.com/modestyachts/ImageNetV2",
            "MIT for the list; images as ImageNet's",
            whole="test",
        ),
        KnownSet(
            "imagenet-a",
            "ImageNet-A",
            ("imagenet-a", "imagenet-adversarial", "wds_imagenet-a"),
            _ANY,
            200,
            {"test": 7_500},
            "https://github.com/hendrycks/natural-adv-examples",
            "MIT for the list; images belong to their photographers",
            whole="test",
        ),
        KnownSet(
            "imagenet-r",
            "ImageNet-R",
            ("imagenet-r", "imagenet-rendition", "wds_imagenet-r"),
            _ANY,
            200,
            {"test": 30_000},
            "https://github.com/hendrycks/imagenet-r",
            "MIT for the list; images belong to their makers",
            whole="test",
        ),
        KnownSet(
            "imagenet-sketch",
            "ImageNet-Sketch",
            ("imagenet-sketch", "imagenet_sketch", "sketch", "wds_imagenet_sketch"),
            _ANY,
            1000,
            {"test": 50_889},
            "https://github.com/HaohanWang/ImageNet-Sketch",
            "MIT for the code; images belong to their makers",
            whole="test",
        ),
        KnownSet(
            "tinyimagenet",
            "Tiny-ImageNet",
            ("tiny-imagenet-200", "tinyimagenet", "tiny-imagenet", "tiny_imagenet"),
            ("tiny-imagenet", *_ANY),
            200,
            {"train": 100_000, "val": 10_000},
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            _IMAGENET,
        ),
        KnownSet(
            "cifar10",
            "CIFAR-10",
            ("cifar10", "cifar-10", "cifar-10-batches-py", "cifar-10-batches-bin", "wds_vtab-cifar10", "wds_cifar10"),
            ("cifar", "cifar-binary", *_ANY),
            10,
            {"train": 50_000, "test": 10_000},
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            _RESEARCH,
        ),
        KnownSet(
            "cifar100",
            "CIFAR-100",
            ("cifar100", "cifar-100", "cifar-100-python", "cifar-100-binary", "wds_vtab-cifar100", "wds_cifar100"),
            ("cifar", "cifar-binary", *_ANY),
            100,
            {"train": 50_000, "test": 10_000},
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            _RESEARCH,
        ),
        KnownSet(
            "stl10",
            "STL-10",
            ("stl10", "stl-10", "stl10_binary", "wds_stl10"),
            ("stl10", *_ANY),
            10,
            {"train": 5_000, "test": 8_000},
            "https://cs.stanford.edu/~acoates/stl10/",
            _IMAGENET,
        ),
        KnownSet(
            "sun397",
            "SUN397",
            ("SUN397", "sun397", "wds_sun397"),
            ("sun397", "coop", *_ANY),
            397,
            {"all": 108_754, "train": 19_850, "test": 19_850, "coop-test": 19_850},
            "https://vision.princeton.edu/projects/2010/SUN/",
            _RESEARCH,
            whole="all",
        ),
        KnownSet(
            "stanfordcars",
            "Stanford Cars",
            ("stanford_cars", "stanfordcars", "stanford-cars", "cars", "wds_cars"),
            ("cars", "coop", *_ANY),
            196,
            {"train": 8_144, "test": 8_041, "coop-test": 8_041},
            "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
            _IMAGENET,
        ),
        KnownSet(
            "food101",
            "Food-101",
            ("food-101", "food101", "wds_food101"),
            ("food101", "coop", *_ANY),
            101,
            {"train": 75_750, "test": 25_250, "coop-test": 30_300},
            "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
            _RESEARCH,
        ),
        KnownSet(
            "oxfordpets",
            "Oxford-IIIT Pets",
            ("oxford_pets", "oxfordpets", "oxford-iiit-pet", "oxford-pets", "pets", "wds_vtab-pets"),
            ("pets", "coop", *_ANY),
            37,
            {"train": 3_680, "test": 3_669, "coop-test": 3_669},
            "https://www.robots.ox.ac.uk/~vgg/data/pets/",
            "CC BY-SA 4.0",
        ),
        KnownSet(
            "flowers102",
            "Oxford Flowers 102",
            ("oxford_flowers", "flowers102", "flowers-102", "102flowers", "oxford-flowers", "wds_vtab-flowers"),
            ("flowers102", "coop", *_ANY),
            102,
            {"train": 1_020, "val": 1_020, "test": 6_149, "coop-test": 2_463},
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
            _RESEARCH,
            names=_flowers,
        ),
        KnownSet(
            "dtd",
            "Describable Textures, partition 1",
            ("dtd", "DTD", "wds_vtab-dtd"),
            ("dtd", "coop", *_ANY),
            47,
            {"train": 1_880, "val": 1_880, "test": 1_880, "coop-test": 1_692},
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
            "research use",
        ),
        KnownSet(
            "eurosat",
            "EuroSAT RGB",
            ("eurosat", "EuroSAT", "EuroSAT_RGB", "2750", "wds_vtab-eurosat"),
            ("folders", "coop", *_ANY[:2]),
            10,
            {"all": 27_000, "coop-test": 8_100},
            "https://github.com/phelber/EuroSAT",
            "MIT",
            whole="all",
        ),
        KnownSet(
            "fgvcaircraft",
            "FGVC Aircraft, variants",
            ("fgvc_aircraft", "fgvcaircraft", "fgvc-aircraft-2013b", "fgvc-aircraft", "wds_fgvc_aircraft"),
            ("aircraft", *_ANY),
            100,
            {"train": 3_334, "val": 3_333, "test": 3_333, "coop-test": 3_333},
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
            "research use, not commercial",
        ),
        KnownSet(
            "hatefulmemes",
            "Hateful Memes, gated",
            ("hateful_memes", "hatefulmemes", "hateful-memes"),
            ("hateful-memes", *_ANY),
            2,
            {"train": 8_500, "test": 3_000},
            "https://ai.meta.com/tools/hatefulmemes/",
            "gated: its own research licence",
            names=("not hateful", "hateful"),
            squash=224,
        ),
        KnownSet(
            "pcam",
            "PatchCamelyon",
            ("pcam", "PCAM", "patch_camelyon", "wds_vtab-pcam"),
            ("pcam", *_ANY),
            2,
            {"train": 262_144, "val": 32_768, "test": 32_768},
            "https://github.com/basveeling/pcam",
            "CC0",
            names=("healthy lymph node tissue", "lymph node tumor tissue"),
        ),
        KnownSet(
            "caltech101",
            "Caltech-101",
            ("caltech-101", "caltech101", "101_ObjectCategories", "wds_vtab-caltech101"),
            ("folders", "coop", *_ANY[:2]),
            101,
            {"all": 8_677, "coop-test": 2_465},
            "https://data.caltech.edu/records/mzrjq-6wc02",
            "CC BY 4.0",
            whole="all",
            without=("BACKGROUND_Google",),
        ),
        KnownSet(
            "caltech256",
            "Caltech-256",
            ("caltech-256", "caltech256", "256_ObjectCategories"),
            _ANY,
            257,
            {"all": 30_607},
            "https://data.caltech.edu/records/nyy15-4j048",
            "CC BY 4.0",
            whole="all",
        ),
        KnownSet(
            "country211",
            "Country211",
            ("country211", "wds_country211"),
            _ANY,
            211,
            {"train": 31_650, "val": 10_550, "test": 21_100},
            "https://github.com/openai/CLIP/blob/main/data/country211.md",
            "Creative Commons, each image its own, of YFCC100M",
        ),
        KnownSet(
            "ucf101",
            "UCF101, middle frames",
            ("ucf101", "UCF-101-midframes", "UCF101"),
            ("coop", *_ANY),
            101,
            {"coop-test": 3_783},
            "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md",
            _RESEARCH,
            whole="all",
        ),
    )
}
