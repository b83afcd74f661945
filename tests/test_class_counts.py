"""Damage against the number of classes: shares of what there is to lose, and what is said where there is nothing."""

import math

import class_counts
import pytest
from class_counts import Damage


def test_damage_by_hand() -> None:
    found = Damage(5, clean=0.8, attacked=0.5, free=0.4, collisions=0.0)
    assert found.relative() == pytest.approx(0.375)
    assert found.above_chance() == pytest.approx(0.5)


@pytest.mark.parametrize("clean", [0.0, 0.1, 0.2, 0.2 + 1e-8])
def test_what_is_not_above_chance_has_nothing_to_lose(clean: float) -> None:
    found = Damage(5, clean=clean, attacked=0.05, free=0.0, collisions=0.0)
    assert math.isnan(found.above_chance())
    assert math.isnan(found.relative()) == (clean == 0.0)


def test_a_row_says_of_how_many_draws_it_is() -> None:
    assert class_counts.cell([0.5, 0.5, 0.5]) == "  50.0 ± 0.0"
    assert class_counts.cell([0.4, 0.6, math.nan]) == "  50.0 ± 14.1 (of 2 of 3 draws: the others had none)"
    assert class_counts.cell([math.nan] * 2) == "   nan ± 0.0 (of 0 of 2 draws: the others had none)"
    found = {k: [Damage(k, clean, 0.1, 0.1, 0.0) for clean in (0.0, 0.5)] for k in (2, 5)}
    assert class_counts.draw(found, "planted")[:4] == b"\x89PNG"


def test_what_draws_take_follows_from_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(class_counts, "damage", lambda model, pictures, chosen, text: asked.append(chosen))
    monkeypatch.setattr(class_counts, "timed", lambda work: (work(), 2.0)[-1])
    pictures = class_counts.Pictures(None, None, tuple(map(str, range(20))), "{}")  # type: ignore[arg-type]
    assert class_counts.ahead(None, pictures, None, 10) == 10 * (5 + 10 + 20) / 5 * 2.0  # type: ignore[arg-type]
    assert asked == [[0, 1, 2, 3, 4]]
