"""The proxy against the strong attack: ranks known by hand, and what cannot be told."""

import pytest
import torch

from robustclip.base.values import override
from robustclip.training import proxy
from robustclip.training.learner import Learner
from robustclip.training.recipes import RECIPES


def scores(*pairs: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {f"trial {i}": pair for i, pair in enumerate(pairs)}


@pytest.mark.parametrize(
    ("pairs", "correlation", "same_best"),
    [
        (((0.1, 0.05), (0.2, 0.1), (0.3, 0.2), (0.4, 0.3)), 1.0, True),
        (((0.1, 0.3), (0.2, 0.2), (0.3, 0.1)), -1.0, False),
        (((0.1, 0.1), (0.2, 0.2), (0.3, 0.4), (0.4, 0.3)), 0.8, False),  # 1 - 6 (1 + 1) / (4 * 15)
        (((0.1, 0.2), (0.2, 0.1), (0.3, 0.3), (0.4, 0.4)), 0.8, True),
        (((0.1, 0.2), (0.2, 0.3), (0.3, 0.1), (0.4, 0.4)), 0.4, True),  # 1 - 6 (1 + 1 + 4) / (4 * 15)
        (((0.1, 0.1), (0.2, 0.2), (0.2, 0.3)), 0.75**0.5, True),  # ranks 1, 2.5, 2.5 and 1, 2, 3: their Pearson correlation
    ],
)
def test_the_correlation_is_that_of_the_ranks(pairs: tuple, correlation: float, same_best: bool) -> None:
    found = proxy.agreement(scores(*pairs))
    assert found.correlation == pytest.approx(correlation)
    assert found.same_best == same_best
    assert found.misleads == (correlation < 0.79 or not same_best)
    said = found.lines()
    assert f"{correlation:.2f}, n = {len(pairs)} finished trials" in said[0]
    assert [line.startswith("WARNING: the proxy misleads") for line in said[1:]] == [True] * found.misleads


def test_a_warning_says_what_is_wrong() -> None:
    low = proxy.agreement(scores((0.1, 0.2), (0.2, 0.3), (0.3, 0.1), (0.4, 0.4))).lines()[1]
    assert low == "WARNING: the proxy misleads: the correlation is below 0.8; the best is the same."
    other = proxy.agreement(scores((0.1, 0.1), (0.2, 0.2), (0.3, 0.4), (0.4, 0.3))).lines()[1]
    assert other == "WARNING: the proxy misleads: val/robust would choose trial 3, val/strong chooses trial 2."


def test_a_tie_at_the_top_is_no_other_best() -> None:
    assert proxy.agreement(scores((0.4, 0.2), (0.4, 0.3), (0.1, 0.1))).same_best
    assert not proxy.agreement(scores((0.4, 0.2), (0.3, 0.3), (0.3, 0.1))).same_best


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (((0.1, 0.3),), "n = 1, it takes 3 finished trials"),
        (((0.1, 0.3), (0.2, 0.1)), "n = 2, it takes 3 finished trials"),
        (((0.1, 0.3), (0.1, 0.2), (0.1, 0.1)), "n = 3, the trials are all alike in one of them"),
        (((0.1, 0.0), (0.2, 0.0), (0.3, 0.0)), "n = 3, the trials are all alike in one of them"),
    ],
)
def test_what_cannot_be_told_is_not_told(pairs: tuple, why: str) -> None:
    found = proxy.agreement(scores(*pairs))
    assert found.correlation is None
    assert not found.misleads
    (said,) = found.lines()
    assert said.startswith("The proxy cannot be judged")
    assert why in said


def test_the_strong_number_is_of_the_same_images_at_the_same_eps(tiny_model, pictures) -> None:
    """Counted as training counts: right when clean and under the attack, whatever the micro-batch."""
    x, y, ids = pictures(40)
    names, templates = ["red", "green", "blue", "grey"], ["a photo of a {}."]
    config = override(RECIPES["smoke"].config, {"validation.eps": 1.0, "templates": templates})
    learner = Learner(config, tiny_model, names, templates, steps=1)
    expected = learner.validate(x, y, ids)
    learner.finish()
    found = proxy.measure(config, learner.student, x, y, ids)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert proxy.strong(config, learner.student, x, y, ids) == {"val/strong": found["val/strong"]}
    assert 0 <= found["val/strong"] <= found["val/clean"]
    harmless = override(config, {"validation.eps": 0.0})
    assert proxy.strong(harmless, learner.student, x, y, ids)["val/strong"] == pytest.approx(found["val/clean"])
    certain = override(config, {"validation.eps": 255.0})
    assert proxy.strong(certain, learner.student, x, y, ids)["val/strong"] < max(found["val/clean"], 1 / 40)
    assert all(p.grad is None for p in learner.student.parameters())
    assert torch.equal(x, pictures(40)[0])
