"""Protocols: everything a robust accuracy depends on but the model, as frozen values with a hash."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from robustclip.attacks import APGD, APGDT, MIFGSM, PGD, Attack, Square
from robustclip.attacks.classes import reductions
from robustclip.attacks.ensembles import AUTOATTACK
from robustclip.attacks.levels import Aimed, Level
from robustclip.attacks.modes import TEXTS, joint, modes_of
from robustclip.attacks.multimodal import CoAttack, Text
from robustclip.attacks.shift import Shifted
from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.values import digest, key, to_json
from robustclip.data.card import CARD, DatasetCard
from robustclip.data.datasets import class_names_of, ensure_set, set_folder
from robustclip.data.index import Index, scan
from robustclip.data.reading import decoded_size, read_images, split_identity, stratified
from robustclip.data.typographic import with_words
from robustclip.data.variants import base_of, has_words, names_among, other_of
from robustclip.data.world import SETS, SUITE
from robustclip.evaluation.presets import PRESETS, TITLES
from robustclip.evaluation.rules import Protocol, SetRule
from robustclip.evaluation.surrogates import other_images
from robustclip.models.class_texts import Descriptions, as_json
from robustclip.runtime.logged import Input

PRECISION = "fp32"  # of every forward and gradient, whatever a paper used; inside the hash
GUIDES = 4  # images of a class that guide a text attack
CELL_IMAGES = 200  # images of one cell: the unit of work, of resuming and of records; on one core about a minute


@dataclass(frozen=True)
class TestSet:
    """The images of one set that a protocol names: positions `rows` in the index of a split, under the prompts the protocol gives it.

    Those are the card's, unless its classes have `descriptions`.
    """

    card: DatasetCard
    index: Index
    rows: np.ndarray
    split: str = "test"
    descriptions: Descriptions | None = None

    @property
    def templates(self) -> tuple[str, ...] | Descriptions:
        """What its class names stand in, or their descriptions."""
        return self.descriptions or self.card.templates

    @property
    def ids(self) -> list[str]:
        return self.index.ids(self.rows)

    @property
    def prompts_hash(self) -> str:
        """The hash of the class names and templates, in order, or of every class's descriptions."""
        return digest([self.card.class_names, as_json(self.card.class_names, self.templates)])

    @property
    def facts(self) -> dict[str, Any]:
        """Return what names its images: how many of which split, the hash of their ids, and of the split's shards."""
        return {"n": len(self.rows), "split": self.split, "ids_sha256": digest(self.ids), "shards": split_identity(self.card, self.split)}


@dataclass(frozen=True)
class Cell:
    """One unit of work: up to CELL_IMAGES images of one set under one model, meeting `attacks`; its key names its record file."""

    key: str
    result_key: str
    model: str
    model_sha256: str
    dataset: str
    rows: np.ndarray
    attacks: tuple[Attack, ...]


@dataclass(frozen=True)
class Resolved:
    """A protocol with its data found; only now is there a hash.

    `surrogates` are other images of the sets on which universal perturbations are learned.
    """

    protocol: Protocol
    sets: dict[str, TestSet]
    surrogates: dict[str, TestSet] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """The hash of everything but the model and the pixels (those are in the cells' keys)."""
        return digest(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `protocols/<hash>.json` says: settings, and per set its class names, templates and ids."""
        attacks = {attack.name: to_json(attack) for attack in self.protocol.attacks}
        settings = to_json(self.protocol) | {"attacks": [*attacks], "attack_settings": attacks, "precision": PRECISION}
        settings |= {"apart": list(self.protocol.apart)} if self.protocol.apart else {}
        sets = {name: self._describe_set(name, test_set) for name, test_set in self.sets.items()}
        return settings | {"set_order": list(self.sets), "sets": sets}

    def inputs(self) -> list[Input]:
        """Return the sets, and what is learned on, as MLflow keeps them."""
        return [
            Input(name, each.split, split_identity(each.card, each.split), len(each.rows), len(each.card.class_names), each.card.folder)
            for name, each in (*self.sets.items(), *self.surrogates.items())
        ]

    @property
    def classes(self) -> dict[str, int]:
        """Return set -> number of classes."""
        return {name: len(each.card.class_names) for name, each in self.sets.items()}

    @property
    def reduced(self) -> dict[str, dict[str, str | None]]:
        """Return, for every set with too few classes for some attack: its name -> the name of what runs instead, None if nothing does."""
        return {name: reductions(self.protocol.attacks, classes) for name, classes in self.classes.items()}

    @property
    def skips(self) -> dict[str, list[str]]:
        """Return, for every set, the attacks that are not run on it: by the protocol's rule, or undefined on so few classes."""
        undefined = {name: [attack for attack, instead in each.items() if instead is None] for name, each in self.reduced.items()}
        return {name: [*dict.fromkeys([*self.protocol.rule(name).skips, *undefined[name]])] for name in self.sets}

    def _describe_set(self, name: str, test_set: TestSet) -> dict[str, Any]:
        return {
            "reduced": self.reduced[name],
            "class_names": list(test_set.card.class_names),
            "templates": as_json(test_set.card.class_names, test_set.templates),
            "ids_sha256": digest(test_set.ids),
            "n": len(test_set.rows),
            "attacked": len(test_set.rows[: self.protocol.attacked]),
            "split": test_set.split,
            "real": name in self.protocol.real or test_set.card.render_seed is None,
            "skips": self.skips[name],
            **({"surrogates": self.surrogates[name].facts} if name in self.surrogates else {}),
        }

    def cells(self, model: str, model_sha256: str) -> list[Cell]:
        """Return the cells of a model, in the order of the sets."""
        result_key = key(model_sha256)
        cells = []
        for name, test_set in self.sets.items():
            shards = split_identity(test_set.card, test_set.split)
            for rows, attacks in self._work(name, test_set.rows):
                ids = test_set.index.ids(rows)
                cells.append(Cell(key(self.hash, result_key, name, shards, ids), result_key, model, model_sha256, name, rows, attacks))
        return cells

    def _work(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[Attack, ...]]]:
        """Yield the rows cell by cell with the attacks they meet: first those that are attacked, then those only looked at clean."""
        attacked = len(rows[: self.protocol.attacked])
        for part, attacks in ((rows[:attacked], self.protocol.attacks_on(name)), (rows[attacked:], ())):
            # Neighbours in the shards share a cell, so each cell reads and hashes few of them.
            place = np.argsort(part, kind="stable")
            for first in range(0, len(part), CELL_IMAGES):
                yield part[np.sort(place[first : first + CELL_IMAGES])], attacks

    def guides(self, name: str) -> np.ndarray:
        """Return the rows of a set that guide text attacks which look at images: the first GUIDES of every class among those attacked."""
        rows = self.sets[name].rows[: self.protocol.attacked]
        seen: Counter[int] = Counter()
        first = []
        for label in self.sets[name].index.label[rows].tolist():
            seen[label] += 1
            first.append(seen[label] <= GUIDES)
        return rows[np.array(first)]

    def read(self, name: str, rows: np.ndarray, model_size: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return ids, pixels uint8 [n,H,W,3] as they are attacked, and labels of some rows of a set, for a model of that input size."""
        protocol, test_set = self.protocol, self.sets[name]
        size = protocol.crop or decoded_size(test_set.card, model_size)
        native = protocol.rule(name).native
        scaled = (None, None) if native else (size, protocol.resize)
        ids, pixels, labels = read_images(test_set.index, rows, *scaled, protocol.interpolation)
        if has_words(name):
            pixels = with_words(pixels, ids, labels, test_set.card.class_names, protocol.seed)
        return ids, pixels, labels


def resolve(protocol: Protocol, out: str) -> Resolved:
    """Return the protocol with its sets found or rendered under `out`.

    Raises UserError that names every missing set, or the first one that is not the set the protocol means: a mean over fewer is no answer.
    """
    for ball in protocol.balls():
        ball.tell_doubt(f"protocol {protocol.name}")
    _refuse_missing(protocol, out)
    resolved = Resolved(protocol, {name: _test_set(protocol, protocol.rule(name), out) for name in protocol.sets})
    learn = {name: each for name, each in resolved.sets.items() if protocol.universal_on(name)}
    found = {name: other_images(protocol, name, each.card, each.split, each.ids, out) for name, each in learn.items()}
    others = {name: TestSet(card, index, np.arange(len(index)), split) for name, (card, split, index) in found.items()}
    resolved = replace(resolved, surrogates=others)
    storage.write_json(storage.join(out, "protocols", f"{resolved.hash}.json"), resolved.describe())
    return resolved


def _refuse_missing(protocol: Protocol, out: str) -> None:
    there = [*SETS, *storage.list_folders(storage.join(out, "data"))]
    shown = (each for name in protocol.sets for each in (base_of(name), other_of(name)) if each)
    missing = [
        f"{name!r} ({TITLES[name]})" if name in TITLES else f"{name!r}{did_you_mean(name, there)}"
        for name in dict.fromkeys(shown)
        if name not in SETS and not storage.exists(storage.join(set_folder(out, name, {}, 0), CARD))
    ]
    if missing:
        raise UserError(
            f"protocol {protocol.name!r} needs {len(protocol.sets)} data sets; under {storage.join(out, 'data')} there is no data set "
            f"{', '.join(missing)}: prepare each with robustclip prepare SOURCE --name NAME, those of a published suite at once with "
            "robustclip prepare --suite SUITE --root DIR (no mean is taken over fewer sets)"
        )


def _test_set(protocol: Protocol, rule: SetRule, out: str) -> TestSet:
    card = ensure_set(out, base_of(rule.name), {"test": protocol.n or 1000}, protocol.render_seed)
    if rule.split not in card.splits:
        raise UserError(f"data set {rule.name!r} has no split {rule.split!r} (it has {', '.join(card.splits)}): prepare one")
    index = scan(card.folder, card, rule.split)
    if len(card.class_names) < 2:
        raise UserError(
            f"data set {rule.name!r} has one class, {card.class_names[0]!r}, which nothing can be mistaken for: it cannot be evaluated; "
            "its images can train what looks at no classes (a recipe of FARE) and give robustclip moments"
        )
    facts = (
        ("classes", len(card.class_names), rule.classes),
        ("classes", len(card.class_names), len(rule.class_names) or None),
        ("images", len(index), rule.images),
        ("px squares as stored", card.native_size, rule.native),
    )
    for what, found, meant in facts:
        if meant not in (None, found):
            raise UserError(
                f"protocol {protocol.name!r}: data set {rule.name!r}, split {rule.split!r}, has {found} {what}, not {meant}: "
                "prepare the set the protocol means"
            )
    wanted = protocol.n or protocol.attacked or 0
    if len(index) < wanted:
        raise UserError(f"data set {rule.name!r} has {len(index)} {rule.split} images, the protocol {protocol.name!r} asks for {wanted}")
    card = replace(card, class_names=rule.class_names or card.class_names)
    if other := other_of(rule.name):
        others = protocol.rule(other).class_names or class_names_of(out, other)
        card = replace(card, class_names=names_among(card.class_names, others, rule.name))
    for texts in (rule.templates, *(attack.texts for attack in protocol.attacks if isinstance(attack, Shifted))):
        if isinstance(texts, Descriptions):
            texts.of(card.class_names, f"data set {rule.name!r}")
    described = rule.templates if isinstance(rule.templates, Descriptions) else None
    templates = card.templates if isinstance(rule.templates, Descriptions) else rule.templates or card.templates
    return TestSet(replace(card, templates=templates), index, stratified(index, protocol.n), rule.split, described)


# One attack: PGD-10 before it changed no number of the table (docs/measured.md) and costs more.
DEMO = Protocol("demo", SUITE, (APGD(20),), (1.0, 2.0, 4.0), n=60, real=("digits",), render_seed=2026)
GREY_LEVELS: tuple[Level, ...] = ("A0", "A1", "A2")
STATIC = tuple(Aimed(level, attack) for level in GREY_LEVELS for attack in (PGD(100), MIFGSM(100, decay=0.0, diversity=0.5)))
WHOLE_LADDER = (
    *STATIC,
    *(Aimed(level, attack) for level in GREY_LEVELS for attack in AUTOATTACK),
    *(Aimed("A3", PGD(20)), Aimed("A4", PGD(20)), Aimed("A5", PGD(20), draws=4), Aimed("A6", Square(200))),
)
ONE_RADIUS: dict[str, Any] = {"eps": (2.0,), "independent": True}
ON_LADDER: dict[str, Any] = {"sets": ("shapes", "faces", "tools", "digits"), "micro_batch": 10} | ONE_RADIUS
PROTOCOLS: dict[str, Protocol] = {
    "demo": DEMO,
    # Fewer images, attacks that do not tire: for differences between methods.
    "strong": replace(DEMO, name="strong", attacks=(APGD(50), APGDT(steps=50, targets=3)), eps=(2.0, 4.0), n=50),
    # Images, prompts, and both: every attack on its own, one radius. One word in every mode; one character, after which a name can still be
    # read, where images are attacked too; any word at all (hotflip), which no model withstands, and a random one as bounds of text alone.
    "multimodal": replace(
        DEMO,
        name="multimodal",
        attacks=(DEMO.attacks[0], *map(Text, (TEXTS["random"], TEXTS["hotflip"])), *modes_of(TEXTS["clip_knn"]), *joint(TEXTS["char"])),
        **ONE_RADIUS,
    ),
    # Images, one word, and both together: for sweeps of many models.
    "study": replace(
        DEMO,
        name="study",
        attacks=(DEMO.attacks[0], Text(TEXTS["clip_knn"]), CoAttack(TEXTS["clip_knn"], steps=20)),
        **ONE_RADIUS,
    ),
    # Test-time defences by an attacker of every level; the dear attacks meet fewer images, and there the worst case is of all levels.
    "ladder": replace(DEMO, name="ladder", attacks=(*STATIC, Aimed("A3", PGD(20))), **ON_LADDER, n=50),
    "ladder-whole": replace(DEMO, name="ladder-whole", attacks=WHOLE_LADDER, **ON_LADDER, n=10),
    "smoke": replace(DEMO, name="smoke", sets=("shapes", "digits"), attacks=(PGD(2, alpha=1.0), APGD(3)), eps=(2.0,), n=16, micro_batch=8),
    **PRESETS,
}


def named(name: str) -> Protocol:
    """Return the protocol `name`; raises UserError with a suggestion for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}{did_you_mean(name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
