"""A folder of golden numbers, what published code gives on tiny inputs, and how what we compute is held against it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustclip.models.checkpoints import build
from robustclip.models.model import Model

FOLDER = Path(__file__).parent / "golden"


class Tokens:
    """The tokenizer of a case: a table of the ids of its texts."""

    def __init__(self, texts: Sequence[str], ids: Tensor):
        self.ids = dict(zip(texts, ids))
        self.ids |= {text: self.ids[f"{text} "] for text in texts[len(ids) :]}  # two folders have no row for a text without its last blank

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.stack([self.ids[text] for text in texts])


@dataclass(frozen=True)
class Case:
    """What a folder holds: `about` (origin, settings, tolerances) and `arrays` (inputs, and what the published code makes of them)."""

    folder: str

    @cached_property
    def about(self) -> dict[str, Any]:
        return json.loads((FOLDER / self.folder / "case.json").read_text())

    @property
    def settings(self) -> dict[str, Any]:
        return self.about["settings"]

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        return arrays_of(FOLDER / self.folder / "case.npz")

    def model(self) -> Model:
        """Return the model of the case in float64, all weights frozen."""
        config = self.about["model"]
        clip = build(config).double().eval().requires_grad_(False)
        clip.load_state_dict(arrays_of(FOLDER / self.folder / "model.npz"))
        return Model(f"golden-{self.folder}", clip, Tokens(self.settings["texts"], self.arrays["token_ids"]), config, {"format": 1})

    @cached_property
    def tolerance(self) -> dict[str, tuple[str, float]]:
        """How far each array may be from the published one: "absolute", or as a share of each entry ("relative") or of the largest one."""
        said = {name: each for name, each in self.about["tolerance"].items() if name != "note"}
        return {name: ("absolute", 0.0) if each == "equal" else next(iter(each.items())) for name, each in said.items()}

    def difference(self, name: str, found: Tensor) -> float:
        """Return how far an array is from the published one, in the unit of its tolerance."""
        wanted, kind = self.arrays[name], self.tolerance[name][0]
        found = torch.as_tensor(found).detach()
        assert found.shape == wanted.shape, f"{name}: {tuple(found.shape)}, published {tuple(wanted.shape)}"
        assert wanted.dtype != torch.float64 or found.dtype == torch.float64, f"{name} is {found.dtype}"
        apart, size = (found.double() - wanted.double()).abs(), wanted.double().abs()
        if kind == "relative":
            apart = torch.where(apart == 0, apart, apart / size)
        return float(apart.max() / size.max() if kind == "of_largest" else apart.max())


def arrays_of(file: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file; none of them is a pickle."""
    with np.load(file, allow_pickle=False) as found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


class Held(NamedTuple):
    """A quantity of ours beside the published one."""

    quantity: str
    difference: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.quantity:<28} {self.difference:9.1e}  allowed {self.allowed:.0e}"


@dataclass(frozen=True)
class Method:
    """A published code and ours beside it.

    `compute` returns what our public functions make of a case, by the names of its arrays. `equal` says in words what that is, `differs`
    which arrays are others here on purpose, and why, `missing` which ones we have no function for, `besides` what else is done otherwise.
    """

    folder: str
    name: str
    compute: Callable[[Case], Mapping[str, Tensor]]
    equal: str
    differs: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    besides: Sequence[str] = ()

    def held(self) -> tuple[list[Held], list[Held]]:
        """Return the quantities that must be equal and those that differ on purpose; raises AssertionError where one is left out."""
        case = Case(self.folder)
        found = self.compute(case)
        wanted = set(case.tolerance)
        assert not set(self.missing) & set(found), "computed, and said to be missing"
        assert set(found) | set(self.missing) == wanted, f"not compared: {sorted(wanted ^ (set(found) | set(self.missing)))}"
        assert set(self.differs) <= set(found)
        rows = {name: Held(name, case.difference(name, value), case.tolerance[name][1]) for name, value in found.items()}
        return [row for name, row in rows.items() if name not in self.differs], [rows[name] for name in self.differs]
