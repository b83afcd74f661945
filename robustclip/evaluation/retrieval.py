"""A protocol of retrieval: everything a recall depends on but the model, with its pairs found, and the units of work it comes to."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from robustclip.attacks import APGD, PGD, Attack
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.multimodal import Text
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, SEED, check, check_fields
from robustclip.base.threat import Ball
from robustclip.base.values import digest, key, to_json
from robustclip.data.captions import WORLD, Pairs, of_set, of_world
from robustclip.evaluation.protocols import PRECISION
from robustclip.records.retrieval import DIRECTIONS, T2I, check_depths

RENDER_SEED = 2026  # no weights that ship were trained on the corpus of this seed
PAIRS = 300  # of the world, where no number is given


@dataclass(frozen=True)
class RetrievalProtocol:
    """Pairs x attacks x eps x depths: `n` images of a split of the set `data` with `captions`, a file, or pairs of the world.

    `ks` are the depths at which recall is counted. Attacks on images, PGD and APGD, meet every image once for each direction, at every eps
    in 1/255; attacks on texts rewrite every text once. Raises UserError for values that contradict, and for other attacks.
    """

    data: str = WORLD
    captions: str = ""
    split: str = "test"
    n: int | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    attacks: tuple[Attack, ...] = (APGD(20), Text(TEXTS["clip_knn"]))
    eps: tuple[float, ...] = (1.0, 2.0, 4.0)
    norm: str = "Linf"
    seed: int = 0
    micro_batch: int = 20

    def __post_init__(self) -> None:
        check_fields(self, "retrieval: ", n=COUNT, seed=SEED, micro_batch=COUNT)
        for k in self.ks:
            check({"k": k}, {"k": COUNT}, "retrieval: ")
        if not self.ks or list(self.ks) != sorted(set(self.ks)):
            raise UserError(f"retrieval: depths must be ascending, not {self.ks}")
        if list(self.eps) != sorted(set(self.eps)) or any(ball.eps == 0 for ball in self.balls()):
            raise UserError(f"retrieval: eps must be positive and ascending, not {self.eps}")
        if (self.data == WORLD) == bool(self.captions):
            raise UserError(
                "retrieval: pairs of the world need no file of captions, and those of a set do: give both --data SET and --captions FILE"
            )
        for attack in self.attacks:
            if not isinstance(attack, Text) and not (isinstance(attack, PGD | APGD) and attack.loss == "ce"):
                raise UserError(
                    f"retrieval: {attack.name} cannot be used: it takes PGD and APGD on cross-entropy, such as pgd-10 and apgd-ce-20, "
                    "and rewritten texts, such as text:clip_knn-1w"
                )
        if len({attack.name for attack in self.attacks}) < len(self.attacks):
            raise UserError(f"retrieval: two attacks have one name in {', '.join(attack.name for attack in self.attacks)}")
        if not self.eps and self.on_images:
            raise UserError(f"retrieval: {self.on_images[0].name} needs an eps")

    def balls(self) -> tuple[Ball, ...]:
        """Return the threat models of its eps, ascending."""
        return tuple(Ball(self.norm, eps) for eps in self.eps)  # type: ignore[arg-type]

    @property
    def on_images(self) -> tuple[Attack, ...]:
        """The attacks on images."""
        return tuple(attack for attack in self.attacks if not isinstance(attack, Text))


@dataclass(frozen=True)
class Ranking:
    """One unit of work: all queries of one direction under one model, clean (`attack` None) or under one attack at one eps.

    Its key names its record file. `dataset` says what it is to a reader.
    """

    key: str
    result_key: str
    model: str
    model_sha256: str
    dataset: str
    direction: str
    attack: Attack | None = None
    ball: Ball | None = None


@dataclass(frozen=True)
class Paired:
    """A protocol of retrieval with its pairs found; only now is there a hash."""

    protocol: RetrievalProtocol
    pairs: Pairs

    @property
    def surrogates(self) -> dict[str, Any]:
        """None: no universal perturbation is learned for pairs."""
        return {}

    @cached_property
    def hash(self) -> str:
        """The hash of everything but the model."""
        return digest(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return what `protocols/<hash>.json` says: settings, and the hash of images and texts in the place of the file of captions."""
        settings = {name: value for name, value in to_json(self.protocol).items() if name != "captions"} | {"precision": PRECISION}
        sizes = {"images": len(self.pairs.ids), "texts": len(self.pairs.texts), "groups": len(self.pairs.groups)}
        return settings | sizes | {"pairs_sha256": self.pairs.sha256, "skipped": self.pairs.skipped, "shared_texts": self.pairs.shared}

    def cells(self, model: str, model_sha256: str) -> list[Ranking]:
        """Return the units of work of a model: clean, then under every attack.

        The attacker knows the images, so texts go away from these, and not only from what they said.
        """
        result_key = key(model_sha256)
        conditions: list[tuple[str, Attack | None, Ball | None]] = [(direction, None, None) for direction in DIRECTIONS]
        for each in self.protocol.attacks:
            if isinstance(each, Text):
                conditions.append((T2I, replace(each, text=replace(each.text, score="image")), None))
            else:
                conditions += [(direction, each, ball) for direction in DIRECTIONS for ball in self.protocol.balls()]
        cells = []
        for direction, attack, ball in conditions:
            called = "clean" if attack is None else f"{attack.name}{f' at {ball}' if ball else ''}"
            said = f"{self.pairs.name}, {direction}, {called}"
            name = key(self.hash, result_key, direction, attack, ball)
            cells.append(Ranking(name, result_key, model, model_sha256, said, direction, attack, ball))
        return cells


def resolve(protocol: RetrievalProtocol, out: str) -> Paired:
    """Return the protocol with its pairs found or rendered, described under `out`.

    Raises UserError where they are not there, and for a depth that one of the two galleries is too small for.
    """
    for ball in protocol.balls():
        ball.tell_doubt("retrieval")
    if protocol.data == WORLD:
        pairs = of_world(protocol.n or PAIRS, RENDER_SEED)
    else:
        pairs = of_set(out, protocol.data, protocol.split, protocol.captions, protocol.n, (protocol.n or 1000, RENDER_SEED))
    for groups in (pairs.text_groups, pairs.image_groups):
        check_depths(protocol.ks, len(groups), int(np.bincount(groups).max()))
    paired = Paired(protocol, pairs)
    storage.write_json(storage.join(out, "protocols", f"{paired.hash}.json"), paired.describe())
    return paired
