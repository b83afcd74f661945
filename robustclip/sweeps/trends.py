"""The figures of a sweep: accuracies against what was varied, with the paper's curve beside them, and how the trials trained."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustclip.base.errors import UserError
from robustclip.records.metrics import Estimate
from robustclip.results.figures import COLOURS, GREY, MARKERS, bars, blank_figure, draw_whole, grid, legend, legend_height, plain, png
from robustclip.sweeps.spaces import Axis, Published, Scale
from robustclip.sweeps.trials import readable

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
DOTS = (0, (1, 2.5))
PUBLISHED = "#000000"  # robust accuracy as published, at an eps of its own
PARTS = {"loss": "loss", "val/clean": "held out, clean", "val/robust": "held out, robust"}  # of a history, with their titles
NAMES: tuple[Scale, ...] = ("ordered", "categorical")  # scales of names, which stand as the trials come
PANEL = 44  # characters that fit into the width of one of two panels


@dataclass(frozen=True)
class Line:
    """One line of a figure: the trials it joins (`curve`, "" where there is one), the accuracy it shows, and its points."""

    curve: str
    column: str
    x: tuple[float | str, ...]
    estimates: tuple[Estimate, ...]


def place(axis: Axis, sample: Mapping[str, Any]) -> tuple[float | str, str]:
    """Return a trial's x and the curve it is a point of; raises UserError for a value that has none of the axis's fields."""
    value, others = sample[axis.path], {path: each for path, each in sample.items() if path != axis.path}
    kind = []
    if axis.fields:
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        name = next((field for field in axis.fields if field in known), None)
        if name is None:
            raise UserError(f"AXIS: {value} has none of the fields {', '.join(axis.fields)}")
        value, rest = known.pop(name), ", ".join(f"{field}={each!r}" for field, each in known.items())
        kind = [f"{type(sample[axis.path]).__name__}({rest})"]
    named = [f"{path.rsplit('.', 1)[-1]} {readable(each)}" for path, each in others.items()]
    return (readable(value) if axis.scale in NAMES else value), ", ".join(kind + named)


def lines(axis: Axis, samples: Mapping[str, Mapping[str, Any]], means: Mapping[str, Mapping[str, Estimate]]) -> list[Line]:
    """Return a line for every curve and accuracy; `samples` are the trials by model, `means` accuracies by title and model."""
    places = {model: place(axis, sample) for model, sample in samples.items()}
    curves: dict[str, list[str]] = {}
    for model, (_, curve) in places.items():
        curves.setdefault(curve, []).append(model)
    found = []
    for curve, models in curves.items():
        if axis.scale not in NAMES:
            models = sorted(models, key=lambda model: places[model][0])
        x = tuple(places[model][0] for model in models)
        found += [Line(curve, column, x, tuple(each[model] for model in models)) for column, each in means.items()]
    return found


Undefended = Mapping[str, Estimate]


def trend(axis: Axis, found: Sequence[Line], undefended: Undefended, published: Published | None, title: str = "measured here") -> bytes:
    """Return the figure as PNG."""
    return png(draw(axis, found, undefended, published, title))


def draw(axis: Axis, found: Sequence[Line], undefended: Undefended, published: Published | None, title: str = "measured here") -> Any:
    """Return the figure: a colour per accuracy, a marker and dash per curve, dotted the undefended model; beside it what was published."""
    colours = {column: COLOURS[i % len(COLOURS)] for i, column in enumerate(undefended)}
    curves, joined = [*dict.fromkeys(line.curve for line in found)], axis.scale != "categorical"
    named = {curve: i for i, curve in enumerate(curves) if len(curves) > 1}
    if published:
        named |= {f"published: {curve}": i for i, curve in enumerate(published.curves) if len(published.curves) > 1}
    labels = [*colours, "undefended", *(["robust, published"] if published else []), *named]
    values = [x for line in found for x in line.x]
    figure = blank_figure(3.6 + (1.0 if _crowded(values) else 0.0) + legend_height(labels))
    panels = figure.subplots(1, 2 if published else 1, squeeze=False)[0]
    places = _dress(panels[0], axis.label, title, values, axis.scale)
    panels[0].set_ylabel("accuracy (%)", fontsize=9)
    for column, estimate in undefended.items():
        panels[0].axhline(100 * estimate.mean, color=colours[column], linewidth=0.9, linestyle=DOTS, zorder=1)
    drawn: dict[str, Any] = {}
    for line in found:
        at, means = [places.get(x, x) for x in line.x], [100 * each.mean for each in line.estimates]
        look = {"color": colours[line.column], **_look(curves.index(line.curve), joined)}
        drawing = panels[0].errorbar(at, means, yerr=bars(line.estimates), elinewidth=1.1, label=f"{line.column}, {line.curve}", **look)
        drawn.setdefault(line.column, drawing)
        draw_whole([drawing])
    handles = [*(drawn[column] for column in colours), panels[0].plot([], [], color=GREY, linewidth=0.9, linestyle=DOTS)[0]]
    if published:
        _draw_published(panels[1], published, next(iter(colours.values())), joined)
        handles += panels[1].plot([], [], color=PUBLISHED, **_look(0, joined))
    # Grey: the colour says which accuracy it is.
    handles += [panels[0].plot([], [], color=GREY, **_look(i, joined))[0] for i in named.values()]
    legend(figure, handles, labels)
    return figure


def _draw_published(axes: Any, published: Published, clean: str, joined: bool) -> None:
    every = [point.x for curve in published.curves.values() for point in curve]
    scale: Scale = "categorical" if isinstance(every[0], str) else "linear"
    places = _dress(axes, published.label, f"as published: {published.source}", every, scale)
    for i, (name, curve) in enumerate(published.curves.items()):
        for kind, colour in (("clean", clean), ("robust", PUBLISHED)):
            known = [(places.get(point.x, point.x), getattr(point, kind)) for point in curve if getattr(point, kind) is not None]
            if known:
                axes.plot(*zip(*known), color=colour, label=f"{kind}, {name}", **_look(i, joined))


def _dress(axes: Any, label: str, title: str, values: Sequence[float | str], scale: Scale) -> dict[Any, float]:
    """Give a panel its labels and ticks, 0 to 100 % upwards, and return where each value stands."""
    plain(axes)
    axes.set(ylim=(0, 100))
    axes.set_xlabel(label, fontsize=9)
    axes.set_title(textwrap.fill(title, PANEL), fontsize=8.5, loc="left")
    if scale == "log":
        axes.set_xscale("log")
        axes.minorticks_off()
    places = {x: i if isinstance(x, str) else x for i, x in enumerate(dict.fromkeys(values))}
    axes.set_xticks(list(places.values()), [textwrap.fill(readable(x), 24, break_long_words=False) for x in places])
    if scale in NAMES:
        axes.set_xlim(-0.5, len(places) - 0.5)
    if _crowded(values):
        axes.tick_params(axis="x", labelsize=7, rotation=40)
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    return places


def _crowded(values: Sequence[float | str]) -> bool:
    """Return whether the names of the ticks do not fit side by side."""
    names = {readable(x) for x in values}
    return max(map(len, names)) > PANEL // len(names)


def _look(i: int, joined: bool) -> dict[str, Any]:
    edge = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    return {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)] if joined else "none", "linewidth": 1.3, **edge}


def training(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Return the loss and the held-out accuracies of every training against its steps as PNG; rows may lack what was not measured."""
    figure = blank_figure(2.3 + legend_height(list(histories)))
    handles: list[Any] = []
    for axes, (part, title) in zip(grid(figure, len(PARTS), "step"), PARTS.items()):
        handles = []
        for i, history in enumerate(histories.values()):
            points = [(row["step"], row[part]) for row in history if part in row]
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)], "linewidth": 1.2}
            handles += axes.plot(*np.array(points).reshape(-1, 2).T, marker="." if part != "loss" else "", **look)
        axes.set_title(title, fontsize=9.5)
    legend(figure, handles, list(histories))
    return png(figure)
