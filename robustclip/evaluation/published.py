"""Published accuracies, row by row, in percent: what a preset's number may be held against, and means over other sets taken from the rows.

Rows are read from the papers' tables. A printed mean is kept beside its row; `mean` takes it again, over all sets or fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustclip.base.errors import UserError
from robustclip.evaluation.presets import FARE_13, TAPT_IMAGES, TECOA_16


@dataclass(frozen=True)
class Row:
    """One line of a published table: accuracy in percent per set, where given, and the printed `average` over the preset's sets.

    `eps` is in 1/255, 0 for clean. `beside` holds sets that the paper reports but does not average.
    """

    preset: str
    model: str
    attack: str
    eps: float
    source: str
    sets: dict[str, float]
    average: float
    beside: dict[str, float]

    def mean(self, sets: Sequence[str] | None = None) -> float:
        """Return the plain mean over some sets (default: those the paper averages); raises UserError for a set without a value."""
        names = tuple(self.sets if sets is None else sets)
        missing = [name for name in names if name not in self.sets]
        if missing or not names:
            raise UserError(f"{self.source}, {self.model}: no mean over {names}; there is no value for {', '.join(missing) or 'no set'}")
        return sum(self.sets[name] for name in names) / len(names)


def published(preset: str, attack: str | None = None, eps: float | None = None) -> list[Row]:
    """Return the published rows of a preset, of one attack and eps (1/255) if given."""
    wanted = [row for row in ROWS if row.preset == preset]
    return [row for row in wanted if attack in (None, row.attack) and eps in (None, row.eps)]


def _rows(preset: str, columns: Sequence[str], attack: str, eps: float, source: str, text: str, beside: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a block "model: value ... | average", whose columns are those `beside` the average, a bar, and those in it."""
    rows = []
    for line in text.strip().splitlines():
        model, _, numbers = line.strip().partition(": ")
        *first, last, average = numbers.split(" | ")
        values = [float(value) for value in last.split()]
        apart = [float(value) for value in " ".join(first).split()]
        pairs = dict(zip(columns, values, strict=True))
        rows.append(Row(preset, model, attack, eps, source, pairs, float(average), dict(zip(beside, apart, strict=True))))
    return rows


def _averages(preset: str, attack: str, eps: Sequence[float], source: str, text: str, beside: Sequence[str] = ()) -> list[Row]:
    """Return the rows of a block "model: value ... | average at clean and every eps" that gives no values per set."""
    rows = []
    for line in text.strip().splitlines():
        model, _, numbers = line.strip().partition(": ")
        *apart, averages = ([float(value) for value in part.split()] for part in numbers.split(" | "))
        for i, radius in enumerate((0.0, *eps)):
            values = dict(zip(beside, (each[i] for each in apart), strict=True))
            rows.append(Row(preset, model, attack if radius else "clean", radius, source, {}, averages[i], values))
    return rows


_MAO, _FARE, _TAPT = "Mao et al. 2023 (TeCoA)", "Schlarmann et al. 2024 (FARE)", "Wang et al. 2025 (TAPT)"
_PAIR, _APGD = "apgd-ce + apgd-dlr", "apgd-ce + apgd-t"
_TAPT_SETS = tuple(TAPT_IMAGES)

# Faulty in print (*): in TeCoA's Table 3 VP(TeCoA)* repeats robust values and VP(CoAdv.)* has STL10 and CIFAR100 swapped. The clean row of
# CLIP in FARE's Table 4 prints 73.1, its values give 72.9. TAPT-V and TAPT-VLI come from code that resets to random prompts.
ROWS: tuple[Row, ...] = (
    *_rows(
        "tecoa-16",
        TECOA_16,
        "pgd-100",
        1.0,
        f"{_MAO}, Table 1",
        """
        CLIP: 1.72 9.57 35.40 4.55 1.02 0.27 3.95 2.72 1.19 2.50 0.04 0.00 2.20 0.10 24.63 15.27 | 6.57
        VPT(CE): 2.27 13.25 40.74 5.59 1.60 0.21 4.21 3.24 1.77 3.56 0.01 0.00 2.47 0.21 28.46 17.17 | 7.79
        LP(CE): 5.78 22.07 36.52 16.02 12.11 0.20 5.625 0.00 0.00 0.00 6.06 0.00 44.53 50.11 36.72 20.12 | 16.00
        FT(CE): 9.13 27.60 61.33 8.50 4.74 1.12 10.13 25.81 5.58 2.61 0.52 0.00 1.07 1.15 44.98 35.44 | 14.98
        VPT(Adv.): 17.50 45.39 72.52 22.10 18.15 9.65 16.02 44.53 25.06 20.27 2.12 3.39 54.30 52.57 61.93 44.06 | 31.84
        VPT(CoAdv.): 17.20 40.72 72.11 20.53 18.01 10.26 15.04 42.71 22.15 21.65 2.80 2.79 26.57 13.69 62.03 43.23 | 26.97
        VPT(ImgCoAdv.): 1.07 8.35 17.44 2.12 2.58 0.03 0.94 3.54 1.94 7.39 0.10 0.03 6.37 14.96 14.38 6.91 | 5.51
        VPT(TeCoA): 23.71 49.18 75.54 25.82 24.87 10.91 20.10 48.57 23.73 21.11 11.26 4.05 31.13 30.50 63.79 47.66 | 32.00
        FT(Adv.): 45.12 11.04 25.90 1.51 0.52 0.25 0.56 20.40 0.11 2.77 3.62 0.48 23.12 24.86 6.68 2.92 | 10.62
        FT(CoAdv.): 33.41 2.51 5.92 0.40 0.01 0.14 0.09 0.19 0.47 0.21 6.62 0.42 30.20 44.70 0.06 0.08 | 7.83
        FT(ImgCoAdv.): 0.03 4.00 3.76 0.37 0.12 0.05 0.17 0.57 0.21 0.96 4.13 0.18 32.93 26.41 0.33 0.18 | 4.65
        FT(TeCoA): 41.88 59.28 83.45 34.13 29.81 13.37 27.99 62.61 30.69 22.88 15.18 5.10 31.97 23.87 69.07 59.54 | 38.18
        """,
    ),
    *_rows(
        "tecoa-16",
        TECOA_16,
        "clean",
        0.0,
        f"{_MAO}, Table 3",
        """
        CLIP: 59.12 89.06 97.16 62.32 57.67 52.14 83.15 85.82 65.64 40.52 38.26 20.04 56.20 52.03 91.75 82.04 | 64.56
        VP(CE): 56.45 86.72 95.90 59.35 59.08 47.61 76.74 85.91 60.48 12.81 33.85 19.05 54.90 50.42 89.93 79.19 | 60.52
        LP(CE): 61.88 91.80 97.66 58.01 63.44 9.77 60.39 39.84 3.71 3.91 49.41 7.42 44.53 52.29 67.19 66.02 | 48.58
        FT(CE): 72.72 87.02 97.25 63.93 59.90 47.69 77.96 87.19 63.47 40.80 37.22 16.29 57.00 43.90 87.38 82.75 | 63.90
        VP(TeCoA)*: 10.13 33.36 57.42 14.84 10.82 3.78 7.45 23.63 12.36 14.09 0.35 1.77 19.93 49.33 41.85 27.11 | 20.51
        VP(Adv.): 42.34 69.06 90.63 37.52 44.31 35.51 50.59 77.60 49.60 34.10 14.97 10.92 54.30 52.47 84.18 69.68 | 51.11
        VP(CoAdv.)*: 42.05 64.16 25.57 90.61 43.72 35.94 49.43 77.13 47.65 35.05 12.41 10.98 57.33 45.54 84.37 69.25 | 49.45
        VP(ImgCoAdv.): 13.24 27.74 56.07 8.80 20.37 4.07 18.79 34.75 17.32 23.78 6.54 4.26 48.37 55.55 52.05 32.03 | 26.48
        VP(TeCoA): 48.84 71.63 91.59 40.96 50.97 33.50 52.41 79.07 45.78 31.86 15.93 12.24 58.53 47.85 95.19 71.66 | 53.00
        FT(Adv.): 61.55 26.01 41.82 5.52 1.51 0.38 2.31 27.72 0.98 6.22 12.21 1.38 47.83 41.62 12.75 6.09 | 18.49
        FT(CoAdv.): 50.18 10.52 17.61 0.63 0.18 0.60 0.90 2.18 1.31 1.22 19.47 1.32 53.20 51.72 0.57 0.44 | 13.25
        FT(ImgCoAdv.): 0.13 10.44 11.20 1.03 0.27 0.12 1.13 2.94 0.91 2.02 13.57 1.11 50.60 37.97 1.13 0.55 | 8.45
        FT(TeCoA): 63.87 78.12 93.30 49.68 51.28 33.30 55.37 81.58 50.92 34.15 27.57 13.89 53.47 49.01 83.51 76.51 | 55.97
        """,
    ),
    *_rows(
        "tecoa-16",
        TECOA_16,
        "pgd-100",
        1.0,
        f"{_MAO}, Table 2",
        """
        VPT(TeCoA, unlabelled): 23.79 48.73 75.43 24.83 22.58 12.05 20.38 47.26 24.54 21.22 12.49 3.48 26.40 40.22 65.55 49.41 | 32.40
        FT(TeCoA, unlabelled): 38.76 60.90 79.41 31.56 30.33 13.87 27.72 58.84 29.48 22.50 11.67 5.10 29.97 19.14 67.49 59.41 | 36.63
        """,
    ),
    *_rows(
        "tecoa-16",
        TECOA_16,
        "clean",
        0.0,
        f"{_MAO}, Table 2",
        """
        VPT(TeCoA, unlabelled): 59.11 70.65 91.31 39.41 47.27 37.87 55.39 78.25 46.17 32.44 19.47 12.69 55.83 49.60 86.34 73.60 | 53.46
        FT(TeCoA, unlabelled): 58.87 80.51 91.18 49.08 54.93 39.39 59.14 77.62 50.79 34.20 26.13 14.52 52.10 52.97 81.39 77.93 | 56.30
        """,
    ),
    *_rows(
        "tecoa-16",
        TECOA_16,
        _PAIR,
        1.0,
        f"{_MAO}, Table 4",
        """
        CLIP: 0.00 2.73 2.96 1.21 0.04 0.11 0.02 0.03 0.07 0.11 0.11 0.18 0.10 0.16 0.41 0.15 | 0.53
        VPT(TeCoA): 20.82 47.25 74.99 23.39 19.76 8.63 16.81 44.78 20.90 18.83 10.73 3.24 31.13 29.35 62.19 45.64 | 29.90
        FT(TeCoA): 39.81 58.27 83.16 32.57 29.03 12.03 25.79 61.76 28.93 20.70 13.26 4.05 31.83 24.09 68.40 58.59 | 37.02
        """,
    ),
    *_rows(
        "tecoa-16",
        TECOA_16,
        _PAIR,
        4.0,
        f"{_MAO}, Table 5",
        """
        CLIP: 0.05 0.01 0.00 0.04 0.04 0.15 0.02 0.00 0.05 0.00 0.11 0.24 0.06 0.18 0.00 0.04 | 0.06
        VPT(TeCoA): 1.44 8.99 21.83 3.78 0.78 0.25 0.46 2.43 2.80 4.41 10.04 0.21 19.73 27.74 11.79 5.66 | 7.65
        FT(TeCoA): 6.40 15.36 34.30 8.33 2.94 0.35 1.12 7.88 4.16 6.44 4.43 0.18 5.63 3.17 26.85 17.09 | 9.04
        """,
    ),
    *_rows(
        "fare-13",
        FARE_13,
        "clean",
        0.0,
        f"{_FARE}, Table 4, ViT-L/14",
        """
        CLIP: 74.9 | 83.3 77.9 95.2 71.1 55.2 62.6 31.8 79.2 87.9 59.6 52.0 93.2 99.3 | 73.1
        TeCoA2: 80.2 | 80.7 50.1 87.5 60.7 44.4 26.1 14.0 51.8 80.1 58.4 49.9 80.0 96.1 | 60.0
        FARE2: 74.2 | 84.8 70.5 89.5 69.1 50.0 25.4 26.7 70.6 85.5 59.7 50.0 91.1 98.5 | 67.0
        TeCoA4: 75.2 | 78.4 37.9 79.6 50.3 38.0 22.5 11.8 38.4 74.3 54.2 50.0 76.1 93.4 | 54.2
        FARE4: 70.4 | 84.7 63.8 77.7 56.5 43.8 18.3 22.0 58.1 80.2 56.7 50.0 87.1 96.0 | 61.1
        """,
        beside=("imagenet",),
    ),
    *_rows(
        "fare-13",
        FARE_13,
        _APGD,
        2.0,
        f"{_FARE}, Table 4, ViT-L/14",
        """
        CLIP: 0.0 | 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.1 0.0 0.0 0.0 | 0.0
        TeCoA2: 62.3 | 70.2 22.2 63.7 35.0 27.0 12.8 5.8 27.6 58.8 45.2 40.0 69.7 88.7 | 43.6
        FARE2: 46.1 | 73.0 26.0 60.3 35.6 26.7 6.2 5.9 31.2 56.5 38.3 41.9 68.3 90.1 | 43.1
        TeCoA4: 60.6 | 69.7 17.9 59.7 33.7 26.5 8.0 5.0 24.1 59.2 43.0 48.8 68.0 86.7 | 42.3
        FARE4: 52.4 | 76.7 30.0 57.3 36.5 28.3 12.8 8.2 31.3 61.6 41.6 50.2 72.4 89.6 | 45.9
        """,
        beside=("imagenet",),
    ),
    *_rows(
        "fare-13",
        FARE_13,
        _APGD,
        4.0,
        f"{_FARE}, Table 4, ViT-L/14",
        """
        CLIP: 0.0 | 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 | 0.0
        TeCoA2: 37.3 | 57.4 6.5 31.0 17.8 14.7 7.7 1.1 9.8 36.7 32.8 16.0 50.3 69.2 | 27.0
        FARE2: 16.6 | 46.6 4.8 25.9 13.9 11.7 0.5 0.6 7.1 25.6 22.5 17.2 27.9 61.7 | 20.5
        TeCoA4: 44.3 | 60.9 8.4 37.1 21.5 16.4 6.6 2.1 12.4 41.9 34.2 44.0 55.2 74.3 | 31.9
        FARE4: 33.3 | 64.1 12.7 34.6 20.2 17.3 11.1 2.6 12.5 40.6 30.9 50.2 50.7 74.4 | 32.4
        """,
        beside=("imagenet",),
    ),
    *_rows(
        "tapt-11",
        _TAPT_SETS,
        "pgd-100",
        1.0,
        f"{_TAPT}, Table 1, ViT-B/16",
        """
        CLIP: 1.4 21.3 1.4 6.0 5.0 0.0 9.8 1.6 0.7 0.8 1.8 | 4.5
        APT-V: 19.4 61.2 18.5 8.0 37.4 3.9 12.1 25.1 9.8 17.2 16.4 | 20.8
        TAPT-V: 40.1 69.7 28.1 23.9 49.2 11.5 54.5 41.1 28.6 40.3 36.5 | 38.5
        APT-VLJ: 23.9 61.7 18.7 9.7 41.4 3.2 14.1 23.4 12.2 17.7 15.5 | 22.0
        TAPT-VLJ: 50.2 81.0 29.5 13.5 68.7 5.6 41.7 39.3 28.1 39.8 41.5 | 39.9
        APT-VLI: 24.3 65.3 18.9 10.0 43.6 3.1 14.3 23.6 10.5 18.2 17.4 | 22.7
        TAPT-VLI: 50.0 79.0 32.4 36.2 67.5 13.1 65.7 49.8 39.6 48.3 47.5 | 48.1
        """,
    ),
    *_rows(
        "tapt-11",
        _TAPT_SETS,
        "pgd-100",
        1.0,
        f"{_TAPT}, Table 1, ViT-B/32",
        """
        CLIP: 1.3 22.9 5.0 0.0 2.6 0.0 3.6 1.5 0.2 1.1 1.7 | 3.6
        """,
    ),
    *_rows(
        "tapt-11",
        _TAPT_SETS,
        "autoattack",
        1.0,
        f"{_TAPT}, Table 1, ViT-B/16",
        """
        APT-V: 14.8 55.9 15.2 2.3 31.3 2.3 8.3 18.0 5.8 12.4 12.7 | 16.3
        TAPT-V: 49.2 75.7 36.6 36.9 57.1 19.4 68.8 52.9 44.0 48.9 48.1 | 48.9
        APT-VLJ: 16.5 53.2 12.6 5.6 31.3 1.7 8.0 16.0 4.9 11.1 11.1 | 15.6
        TAPT-VLJ: 52.4 81.5 30.2 15.4 69.1 5.8 44.8 40.0 31.0 42.1 44.3 | 41.5
        APT-VLI: 17.2 57.1 14.4 8.2 35.3 1.5 8.9 16.6 5.1 11.9 12.5 | 17.2
        TAPT-VLI: 55.1 80.3 35.7 44.4 70.2 16.0 76.2 55.1 50.5 53.6 54.5 | 53.8
        """,
    ),
    *_rows(
        "tapt-11",
        _TAPT_SETS,
        "clean",
        0.0,
        f"{_TAPT}, Table 2, ViT-B/16",
        """
        APT-V: 60.6 89.7 36.9 26.7 84.8 16.8 63.2 55.7 52.1 58.2 54.4 | 54.5
        TAPT-V: 66.9 92.8 44.6 41.0 88.5 23.8 85.7 67.4 65.7 62.9 65.5 | 64.1
        APT-VLJ: 64.0 88.5 34.8 16.0 81.1 8.1 62.6 53.3 47.0 53.0 52.8 | 51.0
        TAPT-VLJ: 66.5 88.5 36.7 16.7 80.6 7.4 64.6 50.4 48.7 54.7 55.4 | 51.8
        APT-VLI: 63.8 88.6 34.1 17.2 80.7 11.6 61.1 51.8 45.9 53.5 52.7 | 51.0
        TAPT-VLI: 65.8 90.4 39.2 48.3 82.5 16.3 85.8 60.3 62.5 60.0 64.4 | 61.4
        """,
    ),
    *_averages(
        "fare-13",
        _APGD,
        (1.0, 2.0, 4.0),
        f"{_FARE}, Table 10, ViT-B/32",
        """
        CLIP: 62.2 0.0 0.0 0.0 | 64.1 0.3 0.0 0.0
        TeCoA (checkpoint of Mao et al.): 54.6 35.8 20.1 3.4 | 50.3 38.2 27.1 9.8
        TeCoA1 (the README prints 38.8 at 1): 70.3 53.2 34.5 8.0 | 53.1 38.2 26.6 9.6
        FARE1: 62.1 32.9 12.2 0.2 | 60.5 38.0 20.1 2.9
        """,
        beside=("imagenet",),
    ),
    *_averages(
        "tga-16",
        "pgd-100",
        (1.0,),
        "Yu et al. 2024 (TGA-ZSR), Tables 1-4, trained on Tiny-ImageNet",
        """
        CLIP: 64.42 4.90
        TeCoA: 45.81 28.06
        PMG-AFT: 46.60 32.51
        FARE: 59.85 18.25
        TGA-ZSR: 56.44 42.09
        """,
    ),
)
