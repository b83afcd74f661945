"""The attacker's ladder as records tell it: what every level left of a model, and what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robustclip.records import survival
from robustclip.records.rows import CLEAN


@dataclass(frozen=True)
class Rung:
    """One level at one eps: what is left of every model under its attacks, and milliseconds per image, clean and under all of them."""

    title: str
    eps: float
    outcomes: Mapping[str, survival.Outcomes]
    clean_ms: Mapping[str, float]
    attack_ms: Mapping[str, float]

    @property
    def grey(self) -> bool:
        """Whether its attackers never saw a defence adapt."""
        return "grey-box" in self.title


def of(table: pa.Table, protocol: Mapping[str, Any], skips: Mapping[str, Sequence[str]]) -> list[Rung]:
    """Return the rungs of a protocol whose attacks are aimed at levels, lowest first, none for any other protocol."""
    attacks: dict[str, list[str]] = {}
    for name, settings in protocol.get("attack_settings", {}).items():
        if settings["type"] == "Aimed":
            attacks.setdefault(name.partition(")")[0] + ")", []).append(name)
    if not protocol.get("independent"):
        return []
    rungs = []
    for eps in map(float, protocol["eps"]):
        for title, names in sorted(attacks.items()):
            outcomes = survival.alone(table, names, eps, skips)
            rungs.append(Rung(title, eps, outcomes, milliseconds(table, [CLEAN], 0.0), milliseconds(table, names, eps)))
    return rungs


def milliseconds(table: pa.Table, attacks: Sequence[str], eps: float) -> dict[str, float]:
    """Return model -> milliseconds per image under some attacks at an eps, one after the other."""
    rows = table.filter(pc.and_(pc.is_in(table["attack"], pa.array(list(attacks))), pc.equal(table["eps"], float(eps))))
    found: dict[str, float] = {}
    for row in rows.group_by(["model", "attack"]).aggregate([("seconds", "mean")]).to_pylist():
        found[row["model"]] = found.get(row["model"], 0.0) + 1000 * row["seconds_mean"]
    return found
