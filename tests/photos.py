"""The comparison on photographs in miniature: archives laid out as the real ones, and a study on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import photo_sets
from photo_study import Study
from sourcing import as_tar, image

from robustclip.base import storage
from robustclip.models.checkpoints import save
from robustclip.models.model import Model

TINY = ("goldfish", "bullfrog", "tabby", "lion", "pizza", "wok", "pay-phone")
SMALL = (
    ("data.n", 16),
    ("data.held_out", 4),
    ("optim.batch", 8),
    ("optim.micro_batch", 8),
    ("optim.epochs", 1),
    ("optim.warmup", 0),
    ("validation.images", 4),
    ("validation.steps", 1),
)


def folders(split: str, names: Sequence[str], n: int, side: int = 32) -> dict[str, bytes]:
    return {f"{split}{name.replace(' ', '_')}/{i}.png": image(side, side) for name in names for i in range(n)}


def archives(root: Path) -> str:
    """Write archives of a few small images, and return their folder."""
    for name in ("tinyimagenet32", "cifar10", "clothing"):
        (root / name).mkdir()
    as_tar(root / "tinyimagenet32" / "train.tar.gz", folders("", TINY, 12))
    as_tar(root / "tinyimagenet32" / "val.tar.gz", folders("", TINY, 6))
    (root / "tinyimagenet32" / "descriptions.json").write_text(json.dumps({name: [f"like a {name}"] for name in TINY}))
    for name, classes in (("cifar10", ("automobile", "ship", "cat")), ("clothing", ("longsleeve", "outwear", "hat"))):
        for split, n in (("train", 12), ("test", 8)):
            prefix = f"{split}/" if name == "cifar10" else ""
            as_tar(root / name / f"{split}.tar.gz", folders(prefix, classes, n, 32 if name == "cifar10" else 40))
    return str(root)


def study_on(data: str, out: str, clip: Model) -> Study:
    """Return a study on the miniatures, its sets prepared, a model in the CLIP's place."""
    photo_sets.make_sets(data, out, unseen=2, tuned=3)
    save(clip, storage.join(out, "photos"))
    return Study(out, data, (0, 1), 3, SMALL)
