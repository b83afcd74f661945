"""Protocols: everything a robust accuracy depends on but the model, as frozen values with a hash."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from robustclip import storage
from robustclip.attacks import APGD, PGD, Attack
from robustclip.attacks.classes import reductions
from robustclip.config import RESULT_VERSION, key, to_json
from robustclip.data.datasets import DatasetCard, ensure_set
from robustclip.data.reading import split_identity, stratified
from robustclip.data.shards import Index, scan
from robustclip.data.world import SUITE
from robustclip.errors import UserError, did_you_mean
from robustclip.threat import Ball

CELL_IMAGES = 200  # images of one cell: the unit of work, of resuming and of records; on one core about a minute


@dataclass(frozen=True)
class Protocol:
    """Data sets x attacks x eps x sample ids x precision x averaging.

    `n` images of every set's test split (None: all), chosen evenly over classes by a hash of their ids; `eps` in 1/255, ascending; attacks
    from cheap to dear: each meets only the images that survived the earlier ones and the smaller eps. Work is done in micro-batches of one
    fixed size, the last one padded, because a matrix product may round differently in batches of another size.
    """

    name: str
    sets: tuple[str, ...]
    attacks: tuple[Attack, ...]
    eps: tuple[float, ...]
    n: int | None = 100
    norm: str = "Linf"
    level: str = "white-box"
    averaging: str = "mean over sets"
    real: tuple[str, ...] = ()
    seed: int = 0
    render_seed: int = 0
    resize: int | None = None
    micro_batch: int = 20

    def __post_init__(self) -> None:
        if not self.sets or not self.attacks:
            raise UserError(f"protocol {self.name}: it needs at least one data set and one attack")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise UserError(f"protocol {self.name}: two attacks have one name in {', '.join(names)}")
        if list(self.eps) != sorted(set(self.eps)) or any(ball.eps == 0 for ball in self.balls()):
            raise UserError(f"protocol {self.name}: eps must be positive and ascending, not {self.eps}")

    def balls(self) -> tuple[Ball, ...]:
        """Return the threat models of its eps, ascending."""
        return tuple(Ball(self.norm, eps) for eps in self.eps)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TestSet:
    """The images of one set that a protocol names: positions `rows` in the index of its test split."""

    card: DatasetCard
    index: Index
    rows: np.ndarray

    @property
    def ids(self) -> list[str]:
        return [str(name) for name in self.index.id[self.rows]]

    @property
    def prompts_hash(self) -> str:
        """The hash of the class names and templates, in order."""
        return _sha256([self.card.class_names, self.card.templates])


@dataclass(frozen=True)
class Cell:
    """One unit of work: up to CELL_IMAGES images of one set under one model; its key names its record file."""

    key: str
    result_key: str
    model: str
    model_sha256: str
    dataset: str
    rows: np.ndarray


@dataclass(frozen=True)
class Resolved:
    """A protocol with its data found; only now is there a hash."""

    protocol: Protocol
    sets: dict[str, TestSet]

    @cached_property
    def hash(self) -> str:
        """The hash of everything but the model and the pixels (those are in the cells' keys)."""
        return _sha256(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `protocols/<hash>.json` says: settings, and per set its class names, templates and ids."""
        settings = to_json(self.protocol) | {"attacks": [attack.name for attack in self.protocol.attacks]}
        settings["attack_settings"] = {attack.name: to_json(attack) for attack in self.protocol.attacks}
        sets = {name: self._describe_set(name, test_set) for name, test_set in self.sets.items()}
        return settings | {"set_order": list(self.sets), "sets": sets}

    @property
    def reduced(self) -> dict[str, dict[str, str | None]]:
        """Return, for every set with too few classes for some attack: its name -> the name of what runs instead, None if nothing does."""
        return {name: reductions(self.protocol.attacks, len(each.card.class_names)) for name, each in self.sets.items()}

    def _describe_set(self, name: str, test_set: TestSet) -> dict[str, Any]:
        return {
            "reduced": self.reduced[name],
            "class_names": list(test_set.card.class_names),
            "templates": list(test_set.card.templates),
            "ids_sha256": _sha256(test_set.ids),
            "n": len(test_set.rows),
            "split": "test",
            "real": name in self.protocol.real,
        }

    def cells(self, model: str, model_sha256: str) -> list[Cell]:
        """Return the cells of a model, in the order of the sets."""
        result_key = key(model_sha256)
        cells = []
        for name, test_set in self.sets.items():
            shards = split_identity(test_set.card, "test")
            for first in range(0, len(test_set.rows), CELL_IMAGES):
                rows = test_set.rows[first : first + CELL_IMAGES]
                ids = [str(id_) for id_ in test_set.index.id[rows]]
                cells.append(Cell(key(self.hash, result_key, name, shards, ids), result_key, model, model_sha256, name, rows))
        return cells


def resolve(protocol: Protocol, out: str) -> Resolved:
    """Return the protocol with its sets found or rendered under `out`; a set that is missing or too small raises UserError."""
    sets = {}
    for name in protocol.sets:
        card = ensure_set(out, name, {"test": protocol.n or 1000}, protocol.render_seed)
        if "test" not in card.splits:
            raise UserError(f"data set {name!r} has no split 'test' (it has {', '.join(card.splits)}): prepare one")
        index = scan(card.folder, card, "test")
        if protocol.n is not None and len(index) < protocol.n:
            raise UserError(f"data set {name!r} has {len(index)} test images, the protocol {protocol.name!r} asks for {protocol.n}")
        sets[name] = TestSet(card, index, stratified(index, protocol.n))
    resolved = Resolved(protocol, sets)
    storage.write_json(storage.join(out, "protocols", f"{resolved.hash}.json"), resolved.describe())
    return resolved


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps([RESULT_VERSION, value], sort_keys=True).encode()).hexdigest()[:16]


DEMO = Protocol("demo", SUITE, (PGD(10), APGD(20)), (1.0, 2.0, 4.0), n=100, real=("digits",), render_seed=2026)
PROTOCOLS: dict[str, Protocol] = {
    "demo": DEMO,
    "smoke": replace(DEMO, name="smoke", sets=("shapes", "digits"), attacks=(PGD(2), APGD(3)), eps=(2.0,), n=16, micro_batch=8),
}


def named(name: str) -> Protocol:
    """Return the protocol `name`; raises UserError with a suggestion for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}{did_you_mean(name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
