"""Prompt shift as records tell it: what an attack that saw other texts left, under those texts and under the scored ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robustclip.records import survival
from robustclip.records.survival import Outcomes, Survival


@dataclass(frozen=True)
class Shift:
    """One attack that saw other texts at one eps (1/255): model -> what it left, by the answers under those and under the scored texts.

    `white` is what the same attack left that saw the scored texts, None where the protocol has no such attack.
    """

    attack: str
    eps: float
    seen: Mapping[str, Outcomes]
    scored: Mapping[str, Outcomes]
    white: Mapping[str, Outcomes] | None


def of(table: pa.Table, protocol: Mapping[str, Any], skips: Mapping[str, Sequence[str]]) -> list[Shift]:
    """Return the shifts of a described protocol, by eps and in its order; none for one that has none."""
    shifted = [name for name, settings in protocol.get("attack_settings", {}).items() if settings["type"] == "Shifted"]
    found = []
    for eps in map(float, protocol["eps"]):
        for name in shifted:
            same = next((each for each in protocol["attacks"] if each not in shifted and name.endswith(f") {each}")), None)
            scored, white = (survival.alone(table, [each], eps, skips) if each else None for each in (name, same))
            assert scored is not None
            found.append(Shift(name, eps, answers(table, name, eps), scored, white))
    return found


def answers(table: pa.Table, attack: str, eps: float) -> dict[str, dict[str, Survival]]:
    """Return model -> set -> which images an attack at an eps left right under the texts that it saw, whatever they were when clean."""
    rows = table.filter(pc.and_(pc.equal(table["attack"], attack), pc.equal(table["eps"], eps)))
    found: dict[str, dict[str, Survival]] = {}
    for pair in rows.group_by(["model", "dataset"], use_threads=False).aggregate([]).to_pylist():
        some = rows.filter(pc.and_(pc.equal(rows["model"], pair["model"]), pc.equal(rows["dataset"], pair["dataset"]))).sort_by("image_id")
        right = np.array(pc.equal(some["seen_prediction"], some["label"]).to_pylist(), dtype=bool)
        ids = np.array(some["image_id"].to_pylist(), dtype=str)
        found.setdefault(pair["model"], {})[pair["dataset"]] = Survival((attack,), (eps,), ids, right, right[:, None, None])
    return found
