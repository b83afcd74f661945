"""The figures of a report, as PNG bytes on a canvas of their own: no global state, nothing at import."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustclip.records.metrics import Estimate, pareto

LEGEND = 60  # characters of a label that a legend has room for
WIDTH = 7.0  # inches; shown 700 px wide, 9 pt are 12.5 px
DPI = 200
# Okabe and Ito's colours, which colour-blind readers can tell apart; the marker changes as well, so that grey prints work.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
GREY = "#8a8a8a"
COLUMNS = 3
IMAGES = 6  # in one row of the grid: wider and the names below do not fit
CAPTIONS = {
    "clean_against_robust": "Clean against robust accuracy, means over the sets with 95 % Wilson intervals; "
    "the line joins the ranked models that no other beats in both.",
    "attacker_levels": "What attackers of every level leave, at the largest ε: in grey those that never saw the defence adapt. The bar is "
    "the worst case per image of all levels, with its 95 % Wilson interval.",
    "adversarial_grid": "Images, what the attack added, and what it made of them, with the predicted class below; a changed one in colour.",
    "training": "How the trials trained: loss and held-out accuracy against the step.",
    "trend": "Accuracies against what was varied, means over the sets with 95 % Wilson intervals; dotted: the undefended model. "
    "Where a second panel stands beside it, it shows the paper's curve as published, on other models and sets.",
    "examples-undefended": "Images attacked under the undefended model: what the attack added, and the predictions before and after.",
    "examples-chosen": "The same images attacked under the chosen model.",
    "security_curve": "Worst-case accuracy against the radius ε of the attack, with 95 % Wilson intervals; ε = 0 is clean. "
    "Models at the same ε are set apart a little, so that no interval hides another.",
}


def blank_figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """Return the PNG of a figure, the same bytes for the same figure."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _style(i: int) -> dict[str, Any]:
    edge = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], **edge}


def plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _shape(n: int, columns: int = COLUMNS) -> tuple[int, int]:
    """Return the rows and columns of n panels, as even as they can be."""
    rows = math.ceil(n / columns)
    return rows, math.ceil(n / rows)


def grid(figure: Any, n: int, xlabel: str, ylabel: str = "") -> list[Any]:
    """Return n axes; the lowest of each column and the leftmost of each row carry the labels."""
    rows, columns = _shape(n)
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    for i, axes in enumerate(panels):
        plain(axes)
        axes.set_xlabel(xlabel if i + columns >= n else "", fontsize=9)
        axes.set_ylabel(ylabel if i % columns == 0 else "", fontsize=9)
    return panels


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(
        handles,
        [short(label, LEGEND) for label in labels],
        loc="outside lower center",
        ncols=_legend_columns(labels),
        fontsize=8.5,
        frameon=False,
    )


def short(name: str, width: int) -> str:
    """Return a name of at most `width` characters; textwrap.shorten leaves nothing of a long one without spaces."""
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, min(len(labels), 90 // (8 + min(LEGEND, max(map(len, labels))))))


def legend_height(labels: Sequence[str]) -> float:
    return 0.18 * math.ceil(len(labels) / _legend_columns(labels)) + 0.15


def bars(estimates: Sequence[Estimate]) -> np.ndarray:
    """Return what errorbar wants, [2, n] in percent: how far each interval reaches below and above its mean."""
    return 100 * np.array([[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]).clip(min=0)


def curve(clean: Mapping[str, Estimate], robust: Mapping[float, Mapping[str, Estimate]], ranked: Sequence[str]) -> bytes:
    """Return clean against robust accuracy as PNG: a panel per eps (in 1/255), a point with intervals per model.

    A line joins the Pareto set of the models that are `ranked`.
    """
    rows, columns = _shape(len(robust))
    figure = blank_figure(rows * {1: 5.0, 2: 3.5, 3: 2.4}[columns] + legend_height(list(clean)))
    handles: list[Any] = []
    for axes, (eps, models) in zip(grid(figure, len(robust), "clean accuracy (%)", "robust accuracy (%)"), robust.items(), strict=True):
        at = [(100 * clean[name].mean, 100 * models[name].mean) for name in clean]
        front = [at[i] for i, name in enumerate(clean) if name in ranked]
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.7, linestyle=(0, (2, 3)))  # robust = clean, the most there can be
        if front:
            axes.plot(*np.array([front[i] for i in pareto(front)]).T, color=GREY, linewidth=1.2, zorder=1.5)
        handles = [
            axes.errorbar(*at[i], xerr=bars([clean[name]]), yerr=bars([models[name]]), linestyle="none", elinewidth=1.1, **_style(i))
            for i, name in enumerate(clean)
        ]
        axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 25), yticks=range(0, 101, 25), aspect="equal")
        axes.set_title(f"ε = {eps:g}/255", fontsize=9.5)
        draw_whole(handles)
    legend(figure, handles, list(clean))
    return png(figure)


def security_curve(curves: Mapping[str, Mapping[float, Estimate]]) -> bytes:
    """Return accuracy against eps (in 1/255; 0 is clean) as PNG, a line with intervals per model, set apart a little so that none hides."""
    figure = blank_figure(3.6 + legend_height(list(curves)))
    (axes,) = grid(figure, 1, "radius ε of the attack (in 1/255)", "worst-case accuracy (%)")
    every = sorted({e for points in curves.values() for e in points})
    handles = []
    for i, points in enumerate(curves.values()):
        eps = np.array(sorted(points))
        apart = 0.005 * (every[-1] - every[0]) * (i - (len(curves) - 1) / 2)
        values = [points[e] for e in eps]
        means = [100 * value.mean for value in values]
        handles.append(axes.errorbar(eps + apart, means, yerr=bars(values), linewidth=1.3, elinewidth=1.1, **_style(i)))
    axes.set(ylim=(0, 100), xticks=every, xticklabels=["0\n(clean)" if e == 0 else f"{e:g}" for e in every])
    axes.margins(x=0.03)
    draw_whole(handles)
    legend(figure, handles, list(curves))
    return png(figure)


def levels(
    clean: Mapping[str, Estimate], rungs: Mapping[str, Mapping[str, Estimate]], worst: Mapping[str, Estimate], grey: set[str]
) -> bytes:
    """Return what attackers of every level leave of models as PNG: a row a model, a mark a level, those of `grey` in grey."""
    titles = ["clean", *rungs, "worst of all"]
    figure = blank_figure(0.9 + 0.24 * len(clean) + legend_height(titles))
    (axes,) = grid(figure, 1, "accuracy (%)")
    rows = np.arange(len(clean))[::-1]
    shared = {"linestyle": "none", "clip_on": False}

    def marks(means: Mapping[str, Estimate], style: Mapping[str, Any]) -> Any:
        return axes.plot([100 * means[name].mean for name in clean], rows, **shared, **style)[0]

    hollow = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 6.5}
    handles = [marks(clean, {"marker": "o", **hollow})]
    for i, (title, means) in enumerate(rungs.items()):
        style = _style(i)
        handles.append(marks(means, style | {"color": GREY, "alpha": 0.75} if title in grey else style))
    values = [worst[name] for name in clean]
    bar = {"color": "black", "marker": "|", "markersize": 10, "markeredgewidth": 2, "elinewidth": 1.1}
    handles.append(axes.errorbar([100 * value.mean for value in values], rows, xerr=bars(values), linestyle="none", **bar))
    axes.set(xlim=(0, 100), ylim=(-0.7, len(clean) - 0.3), yticks=rows)
    axes.set_yticklabels([short(name, 40) for name in clean])
    legend(figure, handles, titles)
    return png(figure)


def draw_whole(handles: Sequence[Any]) -> None:
    """Let the markers that lie on an axis, at 0 % or 100 %, reach over it."""
    for handle in handles:
        handle[0].set_clip_on(False)


def adversarial_grid(originals: np.ndarray, adversarials: np.ndarray, captions: Sequence[tuple[str, str]], gain: float = 20.0) -> bytes:
    """Return images [N,H,W,3] uint8 as PNG: original, perturbation times gain around mid-grey, attacked; captions are both predictions."""
    difference = adversarials.astype(float) - originals.astype(float)
    shown = (originals, np.clip(127.5 + gain * difference, 0, 255).astype(np.uint8), adversarials)
    blocks, columns = _shape(len(originals), IMAGES)
    side = min((WIDTH - 0.4) / columns, 1.6)
    figure = blank_figure(blocks * (3 * side + 0.5))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.0, hspace=0.0)
    parts = figure.subfigures(blocks, 1, squeeze=False, hspace=0.04)[:, 0]
    for i in range(len(originals)):
        for k, images in enumerate(shown):
            axes = parts[i // columns].add_subplot(3, columns, k * columns + i % columns + 1)
            axes.imshow(images[i], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i % columns == 0:
                axes.set_ylabel(("original", f"difference × {gain:g}", "attacked")[k], fontsize=9)
            if k != 1:
                broken = k == 2 and captions[i][0] != captions[i][1]
                name = textwrap.fill(captions[i][k // 2], int(13 * side), max_lines=2, placeholder="…")
                axes.set_xlabel(name, fontsize=8.5, color=COLOURS[1] if broken else "black", labelpad=3)
    return png(figure)
