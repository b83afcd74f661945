"""Published evaluation protocols as frozen values: which sets, splits, prompts, geometry, attacks and averages stand behind a number.

Everything is attacked in fp32 with summed losses, on images drawn by this project's own stratified rule, and counted per image in the worst
case over the attacks of a protocol and all smaller eps. The papers do other things in places; where a preset knowingly departs from its
paper, or the paper's own choice cannot be known, a comment says so. Sources are the papers and their published code.
"""

from dataclasses import replace

from robustclip.attacks import APGD, MIFGSM, PGD, Attack
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.evaluation.rules import Protocol, SetRule
from robustclip.evaluation.templates import A_PHOTO, FARE, TECOA, TECOA_OWN

# Folder under out/data -> what it is. A folder may hold several splits: papers disagree on which images of SUN397 or EuroSAT are scored.
TITLES = {
    "imagenet": "ImageNet-1k",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "sun397": "SUN397",
    "stanfordcars": "Stanford Cars",
    "food101": "Food-101",
    "oxfordpets": "Oxford-IIIT Pets",
    "flowers102": "Oxford Flowers 102",
    "dtd": "Describable Textures, partition 1",
    "eurosat": "EuroSAT RGB",
    "fgvcaircraft": "FGVC Aircraft, variants",
    "hatefulmemes": "Hateful Memes, gated",
    "pcam": "PatchCamelyon",
    "caltech101": "Caltech-101",
    "caltech256": "Caltech-256",
    "country211": "Country211",
    "ucf101": "UCF101, middle frames",
    "tinyimagenet": "Tiny-ImageNet",
    "imagenet-r": "ImageNet-R",
    "imagenet-sketch": "ImageNet-Sketch",
}

# Order of the columns of Mao et al. 2023, Table 1.
TECOA_16 = (
    *("imagenet", "cifar10", "stl10", "cifar100", "sun397", "stanfordcars", "food101", "oxfordpets"),
    *("flowers102", "dtd", "eurosat", "fgvcaircraft", "hatefulmemes", "pcam", "caltech101", "caltech256"),
)
FARE_13 = (
    *("caltech101", "stanfordcars", "cifar10", "cifar100", "dtd", "eurosat", "fgvcaircraft"),
    *("flowers102", "imagenet-r", "imagenet-sketch", "pcam", "oxfordpets", "stl10"),
)
# Images of CoOp's test splits (split_zhou_*.json), 133,696 in all.
TAPT_IMAGES = {
    "imagenet": 50_000,
    "caltech101": 2_465,
    "dtd": 1_692,
    "eurosat": 8_100,
    "oxfordpets": 3_669,
    "fgvcaircraft": 3_333,
    "food101": 30_300,
    "flowers102": 2_463,
    "stanfordcars": 8_041,
    "sun397": 19_850,
    "ucf101": 3_783,
}
BINARY = ("hatefulmemes", "pcam")

# The attacks of every preset, from cheap to dear. Published step sizes are alpha = eps.
_DLR = APGD(100, loss="dlr")
ATTACKS: dict[str, tuple[Attack, ...]] = {
    "tecoa": (PGD(100, alpha=1.0), APGD(100), _DLR),
    "fare": ENSEMBLES["fare"],
    "tapt": (PGD(100, alpha=1.0), MIFGSM(100, alpha=1.0, decay=0.0, diversity=0.5), *ENSEMBLES["autoattack"]),
    "ttc": (PGD(10, alpha=1.0), APGD(100), _DLR),
    "tga": (PGD(100, alpha=1.0), APGD(100), _DLR),
    "mmcoa": (PGD(100, alpha=1.0),),
}


def _of_two_classes(attack: Attack) -> bool:
    """Return whether an attack works on two classes: DLR needs three, targeted attacks more classes than targets."""
    return isinstance(attack, PGD | APGD) and getattr(attack, "loss", "ce") == "ce"


def _binary_skips(protocol: str) -> tuple[str, ...]:
    return tuple(attack.name for attack in ATTACKS[protocol] if not _of_two_classes(attack))


# --- TeCoA-16 and its relatives: the same images and prompts ---------------------------------------------------------------------------

_CLASSES = dict(
    zip(TECOA_16, (1000, 10, 10, 100, 397, 196, 101, 37, 102, 47, 10, 100, 2, 2, 101, 257), strict=True),
    country211=211,
    tinyimagenet=200,
)
# SUN397, EuroSAT and both Caltechs are scored on all their images. Tiny-ImageNet's split is not stated; its test labels are not public.
_SPLITS = dict.fromkeys(("sun397", "eurosat", "caltech101", "caltech256"), "all") | {"imagenet": "val", "tinyimagenet": "val"}
_IMAGES = {"imagenet": 50_000, "sun397": 108_754, "hatefulmemes": 3_000}
# Hateful Memes are squashed to 224 x 224 without a crop: prepare them so. CIFAR and STL are attacked small and enlarged inside the model.
_NATIVE = {"cifar10": 32, "cifar100": 32, "stl10": 96, "hatefulmemes": 224}
# In label order. The published prompt of PCAM's first class has a typo ("Tthis"), left out here.
_CLASS_NAMES = {
    "pcam": ("healthy lymph node tissue", "lymph node tumor tissue"),
    "eurosat": (
        *("annual crop land", "a forest", "brushland or shrubland", "a highway or a road", "industrial buildings"),
        *("pasture land", "permanent crop land", "residential buildings", "a river", "a sea or a lake"),
    ),
}


def _tecoa_rule(name: str, protocol: str, native: dict[str, int], default: str) -> SetRule:
    # Loader, prompts and class names of Hateful Memes were never released: the prepared set's own stand in; its column is not comparable.
    prompt = () if name == "hatefulmemes" else (TECOA_OWN.get(name, default),)
    return SetRule(
        name,
        split=_SPLITS.get(name, "test"),
        classes=_CLASSES[name],
        images=_IMAGES.get(name),
        templates=prompt,
        class_names=_CLASS_NAMES.get(name, ()),
        native=native.get(name),
        skips=_binary_skips(protocol) if name in BINARY else (),
    )


def _like_tecoa(name: str, sets: tuple[str, ...], native: dict[str, int] = _NATIVE, default: str = TECOA) -> Protocol:
    """Return the protocol of some sets with TeCoA's images: all of them, Resize 256 bilinear, crop 224, one prompt per class."""
    family = name.split("-")[0]
    return Protocol(
        name,
        sets,
        ATTACKS[family],
        (1.0,),
        n=None,
        real=sets,
        resize=256,
        crop=224,
        interpolation="bilinear",
        micro_batch=64,
        rules=tuple(_tecoa_rule(each, family, native, default) for each in sets),
    )


def _without(sets: tuple[str, ...], *left_out: str) -> tuple[str, ...]:
    return tuple(name for name in sets if name not in left_out)


# Mao et al. 2023: PGD-100 at 1 (Tables 1, 2), at 2 and 4 (Fig. 5), APGD-CE + APGD-DLR at 1 and 4 (Tables 4, 5), each counted alone; in
# fp16 autocast on a mean loss, which zeroes the gradients of confident images: plain CLIP scores 6.57 under PGD, 0.53 under the APGDs.
_TECOA = replace(_like_tecoa("tecoa-16", TECOA_16), eps=(1.0, 2.0, 4.0))


def _part_of_tecoa(name: str, *left_out: str) -> Protocol:
    sets = _without(TECOA_16, *left_out)
    return replace(_TECOA, name=name, sets=sets, real=sets, rules=tuple(rule for rule in _TECOA.rules if rule.name in sets))


# Wang et al. 2025 (TTC): Country211 for Hateful Memes, CIFAR and STL at 224, full stop in the default prompt, fp16 autocast; its refined
# ImageNet names are the loader's. Interpolation not stated; torchvision's default is bilinear.
_TTC_SETS = tuple("country211" if name == "hatefulmemes" else name for name in TECOA_16)
_TTC = replace(_like_tecoa("ttc-16", _TTC_SETS, native={}, default=f"{TECOA}."), level="grey-box A0")

# Yu et al. 2024 (TGA-ZSR), Tables 1-4: models trained on Tiny-ImageNet, whose own test is among the 16. The resolution at which
# Tiny-ImageNet is attacked is not stated; here as every set but CIFAR and STL.
_TGA = _like_tecoa("tga-16", ("tinyimagenet", *_without(TECOA_16, "hatefulmemes")))

# Zhou et al. 2024 (MMCoA): the 16 branches of the test code, no PCAM; the abstract says 15 sets, and which one it drops is unknown.
# Only the image attack: its text and joint attacks are protocols of their own.
_MMCOA = _like_tecoa("mmcoa-16", (*_without(TECOA_16, *BINARY), "country211", "tinyimagenet"))

# --- FARE-13 --------------------------------------------------------------------------------------------------------------------------

# Schlarmann et al. 2024: robust on 1000 images, clean on all. Theirs are the first 1000 of a shuffle that depends on batch size 50 and on
# the order of web-dataset shards, so other images than ours. CIFAR and STL are enlarged inside the model, the rest cropped to 224 first.
# Class names are CLIP_benchmark's, from the loader; that its copies carry these templates is unverified.
_FARE_CLASSES = {**_CLASSES, "caltech101": 102, "imagenet-r": 200, "imagenet-sketch": 1000}
_FARE_NAMES = {
    "pcam": ("lymph node", "lymph node containing metastatic tumor tissue"),
    "eurosat": (
        *("annual crop land", "forest", "brushland or shrubland", "highway or road", "industrial buildings or commercial buildings"),
        *("pasture land", "permanent crop land", "residential buildings or homes or apartments", "river", "lake or sea"),
    ),
}


def _fare_rule(name: str) -> SetRule:
    return SetRule(
        name,
        split="val" if name == "imagenet" else "test",
        classes=_FARE_CLASSES[name],
        templates=FARE[name],
        class_names=_FARE_NAMES.get(name, ()),
        native={"cifar10": 32, "cifar100": 32, "stl10": 96}.get(name),
        skips=_binary_skips("fare") if name in BINARY else (),
    )


_FARE = Protocol(
    "fare-13",
    FARE_13,
    ATTACKS["fare"],
    (1.0, 2.0, 4.0),
    n=None,
    attacked=1000,
    real=FARE_13,
    resize=224,
    crop=224,
    micro_batch=64,
    rules=tuple(map(_fare_rule, FARE_13)),
)
# Reported beside the average, never in it: 5000 validation images (RobustBench's choice; ours are stratified).
_FARE_IMAGENET = replace(
    _FARE, name="fare-imagenet", sets=("imagenet",), real=("imagenet",), n=5000, attacked=None, rules=(_fare_rule("imagenet"),)
)

# --- TAPT-11 --------------------------------------------------------------------------------------------------------------------------

# Wang et al. 2025 (TAPT): CoOp's test splits and one prompt for every set. Its images were made once on the static prompted model, so
# test-time adaptation was never in the attack's graph: AutoAttack looks weaker than PGD in 59 of 66 cells of its Table 1.
_TAPT = Protocol(
    "tapt-11",
    tuple(TAPT_IMAGES),
    ATTACKS["tapt"],
    (1.0,),
    n=None,
    level="grey-box A1",
    real=tuple(TAPT_IMAGES),
    resize=224,
    crop=224,
    micro_batch=64,
    rules=tuple(
        SetRule(name, split="val" if name == "imagenet" else "coop-test", images=images, templates=(A_PHOTO,))
        for name, images in TAPT_IMAGES.items()
    ),
)

PRESETS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _TECOA,
        _part_of_tecoa("tecoa-15-zs", "imagenet"),  # what a model fine-tuned on ImageNet has not seen
        _part_of_tecoa("tecoa-15-open", "hatefulmemes"),  # what anybody can obtain
        _part_of_tecoa("tecoa-14", *BINARY),  # without the two sets that chance decides
        _FARE,
        _FARE_IMAGENET,
        _TAPT,
        _TTC,
        _TGA,
        _MMCOA,
    )
}
