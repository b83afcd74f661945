"""A report on a rendered world with planted differences: what it prints, what it refuses and what it escapes."""

import numpy as np
import pyarrow as pa
import pytest

from robustclip import records, report
from robustclip.errors import UserError

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


def synthetic(skill: dict[str, tuple[float, float]] = SKILL, n: int = 60, protocol_hash: str = "0123456789abcdef" * 4) -> pa.Table:
    """Return the records of a cascade over random models."""
    rows = []
    for model, (clean, survive) in skill.items():
        for dataset in PROTOCOL["sets"]:
            generator = np.random.default_rng(len(dataset))
            for i in range(n):
                alive = True
                for attack, eps in [("clean", 0.0), *((attack, eps) for eps in EPS for attack in ATTACKS)]:
                    if alive:
                        alive = bool(generator.random() < (clean if attack == "clean" else survive))
                        rows.append(
                            {
                                "protocol": "demo",
                                "protocol_hash": protocol_hash,
                                "model": model,
                                "model_sha256": model,
                                "dataset": dataset,
                                "image_id": f"{i:05d}",
                                "attack": attack,
                                "eps": eps,
                                "label": 1,
                                "prediction": int(alive),
                                "correct": alive,
                                "attack_config": "" if attack == "clean" else "restarts=1",
                            }
                        )
    return records.table(rows)


@pytest.fixture(scope="module")
def built() -> report.Report:
    return report.from_records(synthetic(), PROTOCOL, names={"tecoa": "TeCoA ε=2"})


def test_markdown_prints_every_number_with_n_interval_and_protocol(built: report.Report) -> None:
    text = built.markdown()
    print(text)
    assert "n = 180 images" in text


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean tecoa"):
        report.from_records(synthetic(), PROTOCOL, models=["teco"])
