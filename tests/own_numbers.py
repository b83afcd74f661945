"""Golden numbers of our own, in float64, for all that has no published code to be held against.

    python tests/own_numbers.py [--write]

prints what differs from tests/golden/own.json, and with --write makes that file anew: its diff then shows what a change changed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from golden_case import FOLDER, Case
from parts import SMALL, made, pixels
from torch import Tensor

from robustclip import names as models
from robustclip.attacks import ATTACKS, Attack
from robustclip.attacks.modes import TEXTS, modes_of
from robustclip.attacks.multimodal import Text
from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import ALL, Paired, TeCoA
from robustclip.models.classifier import Guides, Surrogates, ZeroShotClassifier
from robustclip.models.dress import JointTokens
from robustclip.test_time import TEST_TIME
from robustclip.test_time.moments import Moments, Targets, block_inputs
from robustclip.training.config import Config, InnerAttack, Optim
from robustclip.training.installing import install
from robustclip.training.learner import Learner
from robustclip.training.trainables import Towers, VisualTower

FILE, RELATIVE = FOLDER / "own.json", 1e-7  # of a number: what another processor's order of sums may move it by
CASE, TEMPLATES = Case("coattack"), ("a photo of a {}.",)
NAMES = ["dog", "cat", "red car", "tree", "house", "cup", "chair", "small ship", "horse", "clock"]
IMAGES, IDS = CASE.arrays["images"], [f"image/{i}" for i in range(6)]
BALL = Ball("Linf", 4.0)
Numbers = dict[str, Any]


def model() -> models.Model:
    """Return the embedded CLIP in float64."""
    found = models.load("tiny-vit8")
    found.clip.double()
    return found


def classifier() -> ZeroShotClassifier:
    """Return it as a classifier that knows which images it is guided by, and others: the same in a mirror."""
    found = model().classifier(NAMES, TEMPLATES).double()
    with torch.no_grad():
        found.guides = Guides(IMAGES, found(IMAGES).argmax(1), IDS)
        others = IMAGES.flip(3), found(IMAGES.flip(3)).argmax(1)
    found.surrogates = Surrogates([f"mirrored/{i}" for i in range(len(IMAGES))], lambda: others)
    return found


def told(x: Tensor) -> float:
    """Return one number that any change of a tensor changes."""
    x = x.detach().double().flatten()
    return float((x * torch.linspace(1, 2, len(x), dtype=torch.float64)).mean())


def of_attack(attack: Attack) -> Numbers:
    """Return what an attack makes of the images that the embedded CLIP calls as it calls them."""
    attacked = classifier()
    assert attacked.guides is not None
    ball = Ball("L2", 64.0) if attack.name.startswith("torchattacks-pgdl2") else BALL
    example = attack(attacked, IMAGES, attacked.guides.labels, IDS, ball, 0, 4)
    found: Numbers = {"images": told(example.images - IMAGES)}
    if example.trace is not None:
        found["loss"] = told(example.trace.loss_best)
    return found | ({"texts": list(example.class_texts)} if example.class_texts else {})


def of_training(defense: Any, trainable: Any) -> Numbers:
    """Return loss and parameters after two steps of training."""
    config = Config(
        defense=defense,
        trainable=trainable,
        threat=ThreatModel(BALL),
        attack=InnerAttack(2, 0.75),
        optim=Optim(lr=1e-3, batch=6, micro_batch=6),
    )
    learner = Learner(config, model(), NAMES, TEMPLATES, steps=4, dtype=torch.float64)
    losses = []
    for _ in range(2):
        learner.accumulate(pixels(IMAGES), torch.arange(6), IDS)
        losses.append(float(learner.update()["loss"]))
    return {"losses": losses, "parameters": told(torch.cat([p.flatten() for p in learner.parameters]))}


def of_test_time(kind: str) -> Numbers:
    """Return the logits of a test-time defence, over learned tokens where it needs those."""
    settings: Any = TEST_TIME[kind]
    base = classifier()
    if hasattr(settings, "views"):
        settings = replace(settings, views=8, keep=0.5)
    if hasattr(settings, "clean"):
        worn, _ = install(JointTokens("independent", 2, 2), model(), 0, NAMES)
        base = worn.classifier(NAMES, TEMPLATES).double()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "statistics.safetensors")
            Targets.of(Moments.of(block_inputs(base, IMAGES.flip(3))), base, "golden", "train", "centre").write(path)
            adaptive = replace(settings, **{name: path for name in ("clean", "adversarial") if hasattr(settings, name)}).classifier(base, 0)
    else:
        adaptive = settings.classifier(base, 0)
    return {"logits": told(adaptive(IMAGES))}


def everything() -> Iterator[tuple[str, Callable[[], Numbers]]]:
    """Yield the name of each attack, objective, trainable and test-time defence and what computes its numbers."""
    modes = (*(Text(text) for text in TEXTS.values()), *modes_of(TEXTS["clip_knn"]))
    for attack in {each.name: each for each in (*ATTACKS.values(), *modes)}.values():
        yield f"attack {attack.name}", lambda attack=attack: of_attack(attack)
    for kind in ALL:
        trainable = (
            Towers("text") if kind.reads == "texts" else Towers() if issubclass(kind, Paired) or kind.reads == "captions" else VisualTower()
        )
        yield f"objective {kind.__name__}", lambda kind=kind, trainable=trainable: of_training(made(kind), trainable)
    for part in SMALL:
        defense = made(next(kind for kind in ALL if issubclass(kind, Paired))) if isinstance(part, Towers) else TeCoA()
        yield f"trainable {type(part).__name__}", lambda part=part, defense=defense: of_training(defense, part)
    for kind in TEST_TIME:
        yield f"test time {kind}", lambda kind=kind: of_test_time(kind)


def same(found: Any, known: Any) -> bool:
    """Return whether numbers are the known ones but for rounding, and texts exactly."""
    if isinstance(found, dict | list):
        keys = range(len(found)) if isinstance(found, list) else found
        return len(found) == len(known) and all(same(found[key], known[key]) for key in keys)
    return abs(found - known) <= RELATIVE * abs(known) + 1e-13 if isinstance(found, float) else found == known


def main() -> None:
    """Print what differs, or write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the file anew")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = {name: compute() for name, compute in everything()}
    for name in sorted({*found, *known}):
        if name not in found or name not in known or not same(found[name], known[name]):
            print(f"{name}: {known.get(name)} -> {found.get(name)}")
    if write:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{FILE} has the numbers of {len(found)} parts")


if __name__ == "__main__":
    main()
