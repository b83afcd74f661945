"""The sets of benchmarks/photographs.py, made of archives of class folders: Tiny-ImageNet at 32 px, CIFAR-10, clothing.

Of Tiny-ImageNet's classes 40 are never said or shown to the CLIP that is pre-trained here, by a hash of their names; of the others it is
fine-tuned on 100. So there are sets of classes unknown to it (a few of these apart too, for few class names), known and not fine-tuned on,
and fine-tuned on. Captions are descriptions of the classes that come with the images, and what kind of thing a class is, as captions of
the web would say beside its name; KINDS is ours.
"""

import tarfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from robustclip.base import storage
from robustclip.base.seeds import derive
from robustclip.data import card
from robustclip.data.captions import read_captions
from robustclip.data.preparation import prepare
from robustclip.models.class_texts import Descriptions

UNSEEN, TUNED, FEW = 40, 100, 5  # classes
TEST_ONLY = ("tiny-rest", "tiny-unseen", "tiny-few", "tiny-all")
SCORED = ("tiny-unseen", "tiny-rest", "cifar10", "clothing")  # nothing of them fine-tunes
LICENCES = {"cifar10": "none: research use", "clothing": "CC0, alexeygrigorev/clothing-dataset-small"}
TERMS = "ImageNet's terms: research only"
# Words of the captions in the place of those that are not among them; no caption knows a word for an airplane or a horse.
CALLED = {
    "cifar10": {"automobile": "car", "ship": "boat"},
    "clothing": {"longsleeve": "long sleeve shirt", "outwear": "jacket"},
}
OF_KIND = ("a photo of a {kind}.", "a small {kind}.", "a picture of one {kind}.", "a {name}, a kind of {kind}.")
KINDS: dict[str, str] = {
    "fish": "goldfish",
    "frog": "bullfrog, tailed frog",
    "lizard": "European fire salamander, American alligator",
    "snake": "boa constrictor",
    "spider": "black widow, tarantula, scorpion",
    "insect": "bee, fly, grasshopper, cockroach, mantis, dragonfly, ladybug, centipede",
    "butterfly": "monarch, sulphur butterfly",
    "bird": "goose, black stork, king penguin, albatross",
    "sea animal": "American lobster, spiny lobster, jellyfish, sea cucumber, sea slug, brain coral, dugong, trilobite",
    "snail": "snail, slug",
    "dog": "Chihuahua, Yorkshire terrier, golden retriever, Labrador retriever, German shepherd, standard poodle",
    "cat": "tabby, Persian cat, Egyptian cat",
    "big cat": "cougar, lion",
    "bear": "brown bear, lesser panda, koala",
    "deer": "gazelle, bighorn",
    "cow": "ox, bison",
    "large animal": "hog, Arabian camel, African elephant",
    "monkey": "baboon, chimpanzee, orangutan",
    "small animal": "guinea pig",
    "car": "beach wagon, convertible, limousine, sports car, go-kart",
    "truck": "moving van, police van, tractor",
    "bus": "school bus, trolleybus",
    "train": "freight car, bullet train",
    "boat": "gondola, lifeboat",
    "cart": "jinrikisha, lawn mower",
    "missile": "projectile, cannon",
    "jacket": "cardigan, fur coat, military uniform, poncho",
    "robe": "academic gown, vestment",
    "dress": "kimono, apron",
    "skirt": "miniskirt",
    "shorts": "swimming trunks, bikini",
    "hat": "sombrero",
    "shoes": "sandal",
    "socks": "sock, Christmas stocking",
    "thing to wear": "bow tie, sunglasses, neck brace, gasmask, snorkel, backpack",
    "fruit": "orange, lemon, banana, pomegranate, acorn",
    "vegetable": "bell pepper, cauliflower, mushroom",
    "food": "pizza, pretzel, mashed potato, guacamole, meat loaf, potpie, ice cream, ice lolly, espresso, confectionery",
    "building": "barn, water tower, triumphal arch, obelisk, cliff dwelling, thatch, birdhouse, beacon",
    "bridge": "steel arch bridge, suspension bridge, viaduct",
    "shop": "butcher shop, barbershop",
    "landscape": "alp, cliff, coral reef, lakeside, seashore, dam, fountain",
    "furniture": "desk, dining table, rocking chair, chest, altar, refrigerator, bathtub, bannister, lampshade",
    "bottle": "beer bottle, pill bottle, pop bottle, water jug, beaker",
    "pot": "bucket, barrel, teapot, wok, frying pan, plate, wooden spoon",
    "machine": "CD player, iPod, cash machine, parking meter, pay-phone, remote control, computer keyboard, sewing machine, space heater, "
    "turnstile, crane, potter's wheel",
    "instrument": "oboe, organ, brass, drumstick, abacus, magnetic compass, stopwatch, hourglass, binoculars, syringe, scoreboard",
    "ball": "basketball, rugby ball, volleyball, punching bag",
    "toy": "teddy, comic book, umbrella, dumbbell",
    "tool": "broom, plunger, nail, reel, torch, candle, walking stick, chain",
    "fence": "picket fence, flagpole, maypole, pole, spider web",
}


def kind_of(name: str) -> str | None:
    """Return what kind of thing a class of Tiny-ImageNet is, None for any other name."""
    return next((kind for kind, names in KINDS.items() if name in names.split(", ")), None)


def classes_of(names: Sequence[str], unseen: int = UNSEEN, tuned: int = TUNED) -> dict[str, list[str]]:
    """Return set -> its classes, those of a set in the order of the alphabet; which is where depends on hashes of the names alone."""
    held = sorted(names, key=lambda name: derive("unseen", name))[:unseen]
    seen = [name for name in names if name not in held]
    few = sorted(seen, key=lambda name: derive("tuned", name))[:tuned]
    chosen = {"tiny-seen": seen, "tiny-tuned": few, "tiny-rest": [name for name in seen if name not in few]}
    return {name: sorted(each) for name, each in (chosen | {"tiny-unseen": held, "tiny-few": held[:FEW], "tiny-all": names}).items()}


def captions_of(descriptions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return what is said of every class: its descriptions, and its kind."""
    return {
        name: [*texts, *(text.format(name=name, kind=kind) for text in OF_KIND if (kind := kind_of(name)))]
        for name, texts in descriptions.items()
    }


def divided(archive: str, folders: Mapping[str, Collection[str]]) -> None:
    """Write the files of an archive of class folders into several: path of an archive -> the class folders that go into it."""
    with ExitStack() as opened:
        targets = {path: opened.enter_context(tarfile.open(f"{path}.part", "w")) for path in folders}
        into = {folder: [targets[path] for path in folders if folder in set(folders[path])] for folder in set(chain(*folders.values()))}
        for member in (source := opened.enter_context(tarfile.open(archive))):
            for target in into.get(Path(member.name).parent.name, ()) if member.isfile() else ():
                target.addfile(member, source.extractfile(member))
    for path in folders:
        Path(f"{path}.part").rename(path)  # one that is there is whole


def make_sets(data: str, out: str, unseen: int = UNSEEN, tuned: int = TUNED) -> list[str]:
    """Prepare all sets under `out` from the archives in `data`, write `captions.json` there, and return what they came to, a line a set."""
    tiny, work = Path(data) / "tinyimagenet32", Path(out) / "archives"
    descriptions = read_captions(str(tiny / "descriptions.json"))
    storage.write_json(captions_file(out), captions_of(descriptions))
    chosen = classes_of(sorted(descriptions), unseen, tuned)
    for name in chosen:
        (work / name).mkdir(parents=True, exist_ok=True)
    folders = {name: [each.replace(" ", "_") for each in classes] for name, classes in chosen.items()}
    for split, archive in (("train", "train.tar.gz"), ("test", "val.tar.gz")):
        wanted = {str(work / name / f"{split}.tar"): each for name, each in folders.items() if split == "test" or name not in TEST_ONLY}
        if not all(Path(path).exists() for path in wanted):
            divided(str(tiny / archive), wanted)
    said = []
    for name in chosen:
        sources = [str(work / name / f"{split}.tar") for split in ("train", "test") if split == "test" or name not in TEST_ONLY]
        said.append(prepared(out, name, sources, TERMS, {}))
    for name, called in CALLED.items():
        sources = [str(Path(data) / name / f"{split}.tar.gz") for split in ("train", "test")]
        said.append(prepared(out, name, sources, LICENCES[name], called))
    return said


def prepared(out: str, name: str, sources: Sequence[str], licence: str, called: Mapping[str, str]) -> str:
    """Prepare a set, some of its classes `called` otherwise, and return what it came to."""
    done = prepare(out, name, sources, licence=licence, rename=lambda keys, names: [called.get(each, each) for each in names])
    splits = ", ".join(f"{split} {rows:,}" for split, rows in done.card.splits.items())
    return f"{name}: {len(done.card.class_names)} classes; {splits}; {len(done.skipped)} skipped"


def captions_file(out: str) -> str:
    """Return where the captions lie."""
    return storage.join(out, "captions.json")


def described(out: str, *names: str) -> Descriptions:
    """Return what the captions say of the classes of some sets, for a class to be the mean of its texts."""
    said = read_captions(captions_file(out))
    classes = [each for name in names for each in card.load(storage.join(out, "data", name)).class_names]
    return Descriptions.said({each: said[each] for each in classes})
