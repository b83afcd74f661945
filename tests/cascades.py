"""The records of a cascade over random models and what their checks found, for tests of a report and of its page."""

import numpy as np
import pyarrow as pa

from robustclip.records import rows as records
from robustclip.records.findings import Finding
from robustclip.results import report

PROTOCOL_HASH = "0123456789abcdef" * 4
ATTACKS, EPS = ("pgd-10", "apgd-ce-20"), (1.0, 2.0, 4.0)
PROTOCOL = {
    "name": "demo",
    "sets": {
        "shapes": {"class_names": ["circle", "square"], "real": False},
        "letters": {"class_names": ["a", "b", "c", "d"], "real": False},
        "digits": {"class_names": list("0123456789"), "real": True},
    },
    "attacks": list(ATTACKS),
    "eps": [4, 1, 2],
    "norm": "Linf",
}
SKILL = {"plain": (0.9, 0.0), "tecoa": (0.8, 0.8), "fare": (0.84, 0.7)}  # clean accuracy, chance to survive one attack


def synthetic(
    skill: dict[str, tuple[float, float]] = SKILL, n: int = 60, protocol_hash: str = PROTOCOL_HASH, attacks: tuple[str, ...] = ATTACKS
) -> pa.Table:
    """Return the records of a cascade over random models."""
    rows = []
    for model, (clean, survive) in skill.items():
        for dataset in PROTOCOL["sets"]:
            generator = np.random.default_rng(len(dataset))
            for i in range(n):
                alive = True
                for attack, eps in [("clean", 0.0), *((attack, eps) for eps in EPS for attack in attacks)]:
                    if alive:
                        alive = bool(generator.random() < (clean if attack == "clean" else survive))
                        rows.append(
                            {
                                "protocol": "demo",
                                "protocol_hash": protocol_hash,
                                "model": model,
                                "model_sha256": f"sha256-of-{model}",
                                "dataset": dataset,
                                "image_id": f"{i:05d}",
                                "attack": attack,
                                "eps": eps,
                                "label": 1,
                                "prediction": int(alive),
                                "correct": alive,
                                "attack_config": "" if attack == "clean" else '{"restarts": 1}',
                            }
                        )
    return records.table(rows)


PASSED = Finding("1", "nothing at eps 0", "hard", True, "nothing moved")
WARNED = Finding("8", "converged", "warning", False, "pgd-10 still gains")
HEALTHY = {"plain": [PASSED], "tecoa": [PASSED, WARNED], "fare": [PASSED]}


def whole_report() -> report.Report:
    """Return the report of all three models, none of which failed a check."""
    return report.from_records(synthetic(), PROTOCOL, names={"tecoa": "TeCoA ε=2"}, checks=HEALTHY)
