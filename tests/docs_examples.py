"""The examples of docs/extend.md, applied to a copy of the package and used as the page says.

    python tests/docs_examples.py COPY

prints, as JSON, heading -> "ok" or what went wrong; run in a process of its own, whose `robustclip` is the copy's.
"""

import json
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from docs_pages import ROOT, Block, blocks

PAGE = ROOT / "docs" / "extend.md"
NAMED = re.compile(r"`([\w/]+\.py)`")  # the file that a block of Python is, on the line before it
TEMPLATES = ("a photo of a {}.",)


def copy_of_the_package(to: Path) -> None:
    """Copy what the examples change and what uses it."""
    for folder in ("robustclip", "tests", "pipelines", "tune_spaces"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, to / file)


def apply(block: Block, root: Path) -> int:
    """Write a block's file, or change those of its diff, below `root`; return how many lines that are not blank it adds."""
    if block.language == "python":
        named = NAMED.findall(block.before)
        assert named, f"{block.page.name}:{block.line}: the line before the block does not name its file"
        assert not (root / named[-1]).exists(), f"{named[-1]} is there already"
        (root / named[-1]).write_text(block.text)
        return sum(bool(line.strip()) for line in block.text.splitlines())
    for file, hunks in re.findall(r"^--- (\S+)\n((?:(?!--- ).*\n)*)", block.text, re.MULTILINE):
        text = (root / file).read_text()
        for hunk in hunks.split("@@\n"):
            before, after = ("".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in kinds) for kinds in (" -", " +"))
            assert text.count(before) == 1, f"{block.page.name}:{block.line}: {text.count(before)} places in {file} for\n{before}"
            text = text.replace(before, after)
        (root / file).write_text(text)
    return sum(line.startswith("+") and bool(line[1:].strip()) for line in block.text.splitlines())


def apply_all(root: Path) -> dict[str, tuple[int, int]]:
    """Apply every example; return heading -> how many lines in how many files each takes."""
    taken: dict[str, tuple[int, int]] = {}
    for block in blocks(PAGE):
        if block.language in ("python", "diff"):
            files = 1 if block.language == "python" else len(re.findall(r"^--- ", block.text, re.MULTILINE))
            lines, before = taken.get(block.heading, (0, 0))
            taken[block.heading] = (lines + apply(block, root), before + files)
    return taken


# --- what each must do; imports are inside, for they are of the copy ------------------------------------------------------


def task() -> tuple[Any, Any, Any, list[str]]:
    """Return the embedded CLIP's classifier of shapes, eight of its images, labels and ids."""
    from robustclip import names
    from robustclip.data import world

    images, labels = world.images("shapes", 8, 3, "test")
    classifier = names.load("tiny-vit8").classifier(world.SETS["shapes"].class_names, TEMPLATES)
    return classifier, images.float() / 255, labels.long(), [f"image/{i}" for i in range(8)]


def a_defence() -> None:
    import torch.nn.functional as F

    from robustclip.attacks import Example
    from robustclip.base.values import from_json, override, to_json
    from robustclip.defenses import DEFENSES, FARE, Batch, Mix, Roles, TeCoA
    from robustclip.training.config import Config
    from robustclip.training.recipes import named

    Smoothed: Any = type(named("demo-smoothed").config.defense)
    config = override(named("demo-smoothed").config, {"defense.smoothing": 0.2})
    assert from_json(Config, to_json(config)) == config
    assert config.defense == Smoothed(0.2)
    assert from_json(Mix, to_json(Mix((Smoothed(), FARE())))) == Mix((Smoothed(), FARE()))
    assert override(named("demo").config, {"defense": "Smoothed"}).defense == Smoothed()
    assert Smoothed in DEFENSES
    classifier, images, labels, ids = task()
    roles, batch = Roles(classifier, classifier), Batch(images, labels, ids)
    (plain,), (even,) = (each.loss(roles, batch, Example(images)).values() for each in (TeCoA(), Smoothed(1.0)))
    (loss,) = Smoothed(0.25).loss(roles, batch, Example(images)).values()
    assert abs(float(loss - (0.75 * plain + 0.25 * even))) < 1e-4
    assert abs(float(even + F.log_softmax(classifier(images), 1).mean())) < 1e-4


def an_attack() -> None:
    import torch

    from robustclip.attacks import catalogue
    from robustclip.base.threat import Ball

    (line,), (fgsm,) = catalogue.named(["line-4"]), catalogue.named(["fgsm"])
    classifier, images, labels, ids = task()
    ball = Ball("Linf", 4.0)
    found, other = (attack(classifier, images, labels, ids, ball, 0).images for attack in (line, fgsm))
    assert bool((ball.size(found - images) <= ball.radius + 1e-6).all())
    right = [float((classifier(x).argmax(1) == labels).float().mean()) for x in (images, other, found)]
    assert right[2] < right[0]
    alone = line(classifier, images[2:4], labels[2:4], ids[2:4], ball, 0, 2).images
    assert torch.equal(alone, line(classifier, images, labels, ids, ball, 0, 2).images[2:4])


def a_source_of_words() -> None:
    from robustclip.attacks import catalogue
    from robustclip.attacks.modes import MODES, TEXTS

    assert sum(name.partition(":")[2].startswith("ending-1w") for name in MODES) == 7
    (attack,) = catalogue.named(["text:ending-1w"])
    found = TEXTS["ending"](task()[0])
    assert attack.text == TEXTS["ending"]
    assert found.texts != found.clean
    assert all(len(a.split()) == len(b.split()) for a, b in zip(found.clean, found.texts, strict=True))


def a_test_time_defence() -> None:
    import torch

    from robustclip import names
    from robustclip.attacks import PGD
    from robustclip.attacks.levels import Aimed
    from robustclip.base.threat import Ball
    from robustclip.data import world

    classifier = names.load("median[views=10]:tiny-vit8").classifier(world.SETS["shapes"].class_names, TEMPLATES)
    _, images, labels, ids = task()
    logits = classifier.of(ids)(images)
    assert torch.allclose(logits[3:4], classifier.of(ids[3:4])(images[3:4]), atol=1e-3)
    for level in ("A1", "A3", "A4", "A6"):
        attack = Aimed(level, PGD(2))
        assert float((attack(classifier, images, labels, ids, Ball("Linf", 4.0), 0).images - images).abs().max()) > 0


def a_data_set() -> None:
    import runpy
    from unittest.mock import patch

    from PIL import Image

    from robustclip.data.datasets import ensure_set

    with TemporaryDirectory() as folder:
        for split, name in ((split, name) for split in ("train", "test") for name in ("rose", "tulip")):
            inside = Path(folder) / "FOLDER" / split / name
            inside.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 30), (80 * i, 10 if split == "test" else 0, 200 if name == "rose" else 0)).save(inside / f"{i}.png")
        (shown,) = (block for block in blocks(PAGE) if block.heading == "A data set")
        words = re.findall(r'"[^"]*"|\S+', shown.text.splitlines()[0].partition("prepare.py ")[2])
        words = [word.strip('"').replace("FOLDER", f"{folder}/FOLDER") for word in words]
        with patch.object(sys, "argv", ["prepare.py", *words, "--out", folder]), patch("builtins.print"):
            runpy.run_path(str(ROOT / "pipelines" / "prepare.py"))["run"]()
        card = ensure_set(folder, "flowers", {}, 0)
    assert (card.class_names, card.splits, card.templates) == (("rose", "tulip"), {"train": 6, "test": 6}, ("a photo of a {}, a flower.",))


def a_check() -> None:
    from faults_records import FAULTS

    from robustclip.evaluation.checks import CHECKS, Subject, run_check
    from robustclip.evaluation.protocols import PROTOCOLS

    classifier, images, labels, ids = task()
    subject = Subject(classifier, classifier, images, labels, ids, 12, PROTOCOLS["smoke"])
    (number,) = (number for number, (title, _, _) in CHECKS.items() if title == "no image twice")
    assert number == list(CHECKS)[-1]  # a number of its own
    assert run_check(subject, number).passed
    (plant,) = (plant for planted, _, plant in FAULTS if planted == number)
    found = run_check(plant(subject, None), number)
    assert (found.passed, found.level, found.reason) == (False, "warning", "1 of 8 images are there twice")


def a_trainable() -> None:
    from parts import SMALL

    from robustclip import names
    from robustclip.base.values import override
    from robustclip.training.installing import install
    from robustclip.training.recipes import named
    from robustclip.training.trainables import TRAINABLES, AttentionOnly

    config = override(named("demo").config, {"trainable": "AttentionOnly"})
    model, learning = install(config.trainable, names.load("tiny-vit8"), 0, ("a", "b"))
    assert {name for name, p in model.clip.named_parameters() if p.requires_grad} == {
        name for name, _ in model.clip.named_parameters() if re.match(r"visual\.transformer\.resblocks\.[012]\.attn\.", name)
    }
    assert len(learning) > 0
    assert tuple(type(part) for part in SMALL) == TRAINABLES == (*TRAINABLES[:-1], AttentionOnly)


def a_recipe() -> None:
    from robustclip.base.values import key, override
    from robustclip.training.recipes import named

    wide = named("demo-wide").config
    assert wide == override(named("demo").config, {"threat.image.eps": 8})
    assert key(wide) == key(override(named("demo").config, {"threat.image.eps": 8}))


def a_search_space() -> None:
    import robustclip
    from robustclip.sweeps.spaces import count, load_space

    space = load_space(Path(robustclip.__file__).parents[1] / "tune_spaces" / "decay.py")
    assert (count(space, 1), space.question) == (3, "How much weight decay does robustness want?")


EXAMPLES: dict[str, Callable[[], None]] = {
    "A defence": a_defence,
    "An attack": an_attack,
    "A source of words": a_source_of_words,
    "A test-time defence": a_test_time_defence,
    "A data set": a_data_set,
    "A check": a_check,
    "A trainable": a_trainable,
    "A recipe": a_recipe,
    "A search space": a_search_space,
}


def outcome(example: Callable[[], None]) -> str:
    """Return "ok", or where and why an example fails."""
    try:
        example()
    except Exception:  # the others still have something to say
        return traceback.format_exc(limit=-3)
    return "ok"


if __name__ == "__main__":
    sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/tests"]
    print(json.dumps({heading: outcome(example) for heading, example in EXAMPLES.items()}))
