"""The trend figure: a line per curve and accuracy through the right points, with the right intervals, and the paper's beside it."""

from typing import Any

import numpy as np
import pytest

from robustclip.base.errors import UserError
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.records import metrics, survival
from robustclip.records.metrics import Estimate
from robustclip.sweeps import trends
from robustclip.sweeps.spaces import Axis, Point, Published

AXIS = Axis("data.per_class", "images per class", "log")
SAMPLES = {
    "a": {"data.per_class": 20, "recipe": "demo"},
    "b": {"data.per_class": 1, "recipe": "demo"},
    "c": {"data.per_class": 20, "recipe": "demo-tokens"},
    "d": {"data.per_class": 1, "recipe": "demo-tokens"},
}
PUBLISHED = Published("a paper, Fig. 4", "images of ImageNet", {"FT": (Point("1", 56.0, 19.0), Point("all", 55.0, 38.0))})


def estimate(correct: int, n: int = 100) -> Estimate:
    seen = survival.Survival(("a",), (1.0,), np.arange(n), np.arange(n) < correct, np.zeros((n, 1, 1), bool))
    found = metrics.accuracy(seen, "clean")
    return Estimate(found.mean, found.low, found.high, found.n)


MEANS = {
    "clean": {"a": estimate(70), "b": estimate(60), "c": estimate(65), "d": estimate(55)},
    "robust ε=1": {"a": estimate(40), "b": estimate(0), "c": estimate(35), "d": estimate(25)},
}
UNDEFENDED = {"clean": estimate(90), "robust ε=1": estimate(10)}


def errorbars(axes: Any) -> dict[str, Any]:
    return {bars.get_label(): bars for bars in axes.containers}


def test_a_line_per_curve_and_accuracy_in_the_order_of_the_axis() -> None:
    found = trends.lines(AXIS, SAMPLES, MEANS)
    assert [(line.curve, line.column) for line in found] == [
        (curve, column) for curve in ("recipe demo", "recipe demo-tokens") for column in ("clean", "robust ε=1")
    ]
    assert all(line.x == (1, 20) for line in found)
    assert found[1].estimates == (MEANS["robust ε=1"]["b"], MEANS["robust ε=1"]["a"])


def test_the_figure_has_these_points_and_their_wilson_intervals() -> None:
    figure = trends.draw(AXIS, trends.lines(AXIS, SAMPLES, MEANS), UNDEFENDED, PUBLISHED)
    here, paper = figure.axes
    bars = errorbars(here)
    assert set(bars) == {f"{column}, recipe {recipe}" for column in MEANS for recipe in ("demo", "demo-tokens")}
    points, _, (intervals,) = bars["robust ε=1, recipe demo"].lines
    np.testing.assert_allclose(points.get_xydata(), [[1, 0], [20, 40]])
    # Wilson, 95 %: 0 of 100 is [0, 3.70] and 40 of 100 is [30.94, 49.80], not the symmetric [30.4, 49.6].
    np.testing.assert_allclose([segment[:, 1] for segment in intervals.get_segments()], [[0, 3.70], [30.94, 49.80]], atol=0.01)
    levels = {float(line.get_ydata()[0]) for line in here.lines if len(set(line.get_ydata())) == 1 and len(line.get_xdata()) == 2}
    assert {90.0, 10.0} <= levels  # the undefended model
    published = {line.get_label(): line.get_xydata().tolist() for line in paper.lines if len(line.get_xdata())}
    assert published == {"clean, FT": [[0, 56], [1, 55]], "robust, FT": [[0, 19], [1, 38]]}
    assert [text.get_text() for text in paper.get_xticklabels()] == ["1", "all"]
    assert "a paper, Fig. 4" in paper.get_title(loc="left").replace("\n", " ")
    assert here.get_xscale() == "log"
    assert "published" not in " ".join(bars)


def test_without_a_published_curve_there_is_one_panel() -> None:
    figure = trends.draw(AXIS, trends.lines(AXIS, SAMPLES, MEANS), UNDEFENDED, None)
    assert len(figure.axes) == 1
    assert trends.trend(AXIS, trends.lines(AXIS, SAMPLES, MEANS), UNDEFENDED, PUBLISHED).startswith(b"\x89PNG")


def test_a_paper_that_gives_robust_accuracy_only_has_one_line() -> None:
    only = Published("a paper, Fig. 6", "design", {"TeCoA": (Point("token", None, 32.0), Point("image", None, 20.5))})
    axis = Axis("trainable", "what trains", "categorical")
    samples = {"a": {"trainable": TokenPrompt(18)}, "b": {"trainable": PixelPrompt("pad", 8)}}
    means = {column: {model: each[model] for model in samples} for column, each in MEANS.items()}
    here, paper = trends.draw(axis, trends.lines(axis, samples, means), UNDEFENDED, only).axes
    assert [line.get_label() for line in paper.lines if len(line.get_xdata())] == ["robust, TeCoA"]
    points = errorbars(here)["clean, "].lines[0]
    np.testing.assert_allclose(points.get_xydata(), [[0, 70], [1, 60]])
    assert points.get_linestyle() == "None"  # categories have no order, so nothing joins them
    labels = [text.get_text().replace("\n", " ") for text in here.get_xticklabels()]
    assert labels == ["TokenPrompt(tokens=18, deep=False)", "PixelPrompt(shape='pad', size=8)"]


def test_a_field_of_a_sampled_dataclass_is_the_axis_and_its_kind_the_curve() -> None:
    axis = Axis("trainable", "size", "log", fields=("tokens", "size"))
    assert trends.place(axis, {"trainable": TokenPrompt(4), "optim.lr": 0.01}) == (4, "TokenPrompt(deep=False), lr 0.01")
    assert trends.place(axis, {"trainable": PixelPrompt("pad", 2)}) == (2, "PixelPrompt(shape='pad')")
    with pytest.raises(UserError, match="none of the fields parameters"):
        trends.place(Axis("trainable", "size", fields=("parameters",)), {"trainable": TokenPrompt(4)})


def test_long_names_of_many_trainings_leave_room_for_the_curves() -> None:
    """A legend inside a narrow panel once squeezed it to nothing, which matplotlib only warns of; warnings of ours are errors here."""
    history = [{"step": i, "loss": 1.0 / i, **({"val/clean": 0.5, "val/robust": 0.1} if i % 5 == 0 else {})} for i in range(1, 11)]
    names = [f"train PixelPrompt(shape='random patch', size=28), lr {i}" for i in range(28)]
    png = trends.training(dict.fromkeys(names, history))
    assert png.startswith(b"\x89PNG")
    assert png == trends.training(dict.fromkeys(names, history))


def test_sizes_with_an_all_at_the_end_are_names_in_an_order_and_joined() -> None:
    axis = Axis("data.per_class", "images per class", "ordered")
    samples = {"a": {"data.per_class": 4}, "b": {"data.per_class": 16}, "c": {"data.per_class": None}}
    means = {"clean": {"a": estimate(70), "b": estimate(60), "c": estimate(65)}}
    (line,) = trends.lines(axis, samples, means)
    assert line.x == ("4", "16", "all")
    (here,) = trends.draw(axis, [line], {"clean": estimate(90)}, None).axes
    points = errorbars(here)["clean, "].lines[0]
    np.testing.assert_allclose(points.get_xydata(), [[0, 70], [1, 60], [2, 65]])
    assert points.get_linestyle() == "-"
    assert [text.get_text() for text in here.get_xticklabels()] == ["4", "16", "all"]
