"""The figures of a report as PNG bytes. Drawn on a canvas of their own: no global plotting state, nothing happens at import."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustclip.metrics import Estimate, pareto

WIDTH = 7.0  # inches; shown 700 px wide, 9 pt are 12.5 px
DPI = 200
# Okabe and Ito's colours, which colour-blind readers can tell apart; the marker changes as well, so that grey prints work.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
GREY = "#8a8a8a"
COLUMNS = 3
IMAGES = 6  # in one row of the grid: wider and the names below do not fit


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    """Return the PNG of a figure, the same bytes for the same figure."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5.5, "capsize": 0, "elinewidth": 1.1}


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _grid(figure: Any, n: int) -> list[Any]:
    columns = min(n, COLUMNS)
    return [figure.add_subplot(math.ceil(n / columns), columns, i + 1) for i in range(n)]


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    wrapped = [textwrap.fill(label, 40) for label in labels]
    columns = max(1, min(len(labels), int(80 / (6 + max(len(line) for label in wrapped for line in label.split("\n"))))))
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, handletextpad=0.4)


def _legend_height(labels: Sequence[str]) -> float:
    lines = [textwrap.fill(label, 40).count("\n") + 1 for label in labels]
    columns = max(1, min(len(labels), int(80 / (6 + min(40, max(map(len, labels)))))))
    return 0.17 * math.ceil(sum(lines) / columns) + 0.15


def _bars(estimate: Estimate) -> tuple[list[float], list[float]]:
    return [100 * max(0.0, estimate.mean - estimate.low)], [100 * max(0.0, estimate.high - estimate.mean)]


def curve(clean: Mapping[str, Estimate], robust: Mapping[float, Mapping[str, Estimate]]) -> bytes:
    """Return clean against robust accuracy as PNG: a panel per eps (in 1/255), a point with intervals per model, the Pareto set joined."""
    rows, columns = math.ceil(len(robust) / COLUMNS), min(len(robust), COLUMNS)
    figure = _figure(rows * ({1: 4.2, 2: 3.4, 3: 2.5}[columns]) + _legend_height(list(clean)))
    handles: list[Any] = []
    for axes, (eps, models) in zip(_grid(figure, len(robust)), robust.items(), strict=True):
        at = [(100 * clean[name].mean, 100 * models[name].mean) for name in clean]
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.7, linestyle=(0, (2, 3)))  # robust = clean, the most there can be
        best = pareto(at)
        axes.plot(*np.array([at[i] for i in best]).T, color=GREY, linewidth=1.2, zorder=1.5)
        handles = [
            axes.errorbar(x, y, xerr=np.array(_bars(clean[name])), yerr=np.array(_bars(models[name])), linestyle="none", **_style(i))
            for i, (name, (x, y)) in enumerate(zip(clean, at, strict=True))
        ]
        axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 25), yticks=range(0, 101, 25), aspect="equal")
        axes.set_title(f"ε = {eps:g}/255", fontsize=9.5)
        _plain(axes)
    figure.supxlabel("clean accuracy (%)", fontsize=9)
    figure.supylabel("robust accuracy (%)", fontsize=9)
    _legend(figure, handles, list(clean))
    return _png(figure)


def security_curve(curves: Mapping[str, Mapping[float, Estimate]]) -> bytes:
    """Return accuracy against eps (in 1/255; 0 is clean) as PNG, a line with intervals per model."""
    figure = _figure(3.6 + _legend_height(list(curves)))
    axes = figure.add_subplot()
    handles = []
    for i, points in enumerate(curves.values()):
        eps = sorted(points)
        errors = np.hstack([np.array(_bars(points[e])) for e in eps])
        handles.append(axes.errorbar(eps, [100 * points[e].mean for e in eps], yerr=errors, linewidth=1.4, **_style(i)))
    every = sorted({e for points in curves.values() for e in points})
    axes.set(ylim=(0, 100), xticks=every, xticklabels=["0\n(clean)" if e == 0 else f"{e:g}" for e in every])
    axes.margins(x=0.03)
    axes.set_xlabel("radius ε of the attack (in 1/255)", fontsize=9)
    axes.set_ylabel("worst-case accuracy (%)", fontsize=9)
    _plain(axes)
    for line in handles:
        line[0].set_clip_on(False)  # a marker at 0 % is drawn whole
    _legend(figure, handles, list(curves))
    return _png(figure)


def adversarial_grid(originals: np.ndarray, adversarials: np.ndarray, captions: Sequence[tuple[str, str]], gain: float = 20.0) -> bytes:
    """Return images [N,H,W,3] uint8 as PNG: original, perturbation times gain around mid-grey, attacked; captions are both predictions."""
    difference = adversarials.astype(float) - originals.astype(float)
    shown = (originals, np.clip(127.5 + gain * difference, 0, 255).astype(np.uint8), adversarials)
    columns = min(IMAGES, len(originals))
    blocks = math.ceil(len(originals) / columns)
    figure = _figure(blocks * 3 * (WIDTH - 1.0) / columns * 1.16)
    for i in range(len(originals)):
        for k, images in enumerate(shown):
            axes = figure.add_subplot(3 * blocks, columns, (3 * (i // columns) + k) * columns + i % columns + 1)
            axes.imshow(images[i], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i % columns == 0:
                axes.set_ylabel(("original", f"difference × {gain:g}", "attacked")[k], fontsize=9)
            if k != 1:
                broken = k == 2 and captions[i][0] != captions[i][1]
                name = textwrap.shorten(captions[i][k // 2], 18, placeholder="…")
                axes.set_xlabel(name, fontsize=8.5, color=COLOURS[1] if broken else "black", labelpad=3)
    return _png(figure)


def training_curves(history: Sequence[Mapping[str, float]], x: str = "step") -> bytes:
    """Return everything in history against x as PNG; "part/name" keys share the panel "part", rows may lack keys."""
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in history for key in row if key != x):
        panels.setdefault(key.split("/")[0], []).append(key)
    columns = min(len(panels), COLUMNS)
    figure = _figure(math.ceil(len(panels) / columns) * 2.2 + 0.2)
    for axes, (title, keys) in zip(_grid(figure, len(panels)), panels.items(), strict=True):
        for i, key in enumerate(keys):
            rows = [row for row in history if key in row]
            label = key.split("/", 1)[-1]
            axes.plot([row[x] for row in rows], [row[key] for row in rows], color=COLOURS[i % len(COLOURS)], linewidth=1.3, label=label)
        axes.set_title(title, fontsize=9.5)
        _plain(axes)
        if len(keys) > 1:
            axes.legend(fontsize=7.5, frameon=False)
    figure.supxlabel(x, fontsize=9)
    return _png(figure)
