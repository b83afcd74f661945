"""Search spaces: a question as data, checked before anything runs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustclip.config import Config, flatten
from robustclip.errors import UserError, did_you_mean
from robustclip.recipes import named


@dataclass(frozen=True)
class Space:
    """A question as data: which recipe, which fields vary, and the held-out metric that chooses."""

    name: str
    question: str
    recipe: str
    space: Mapping[str, Any]
    metric: str
    mode: str


def load_space(path: Path) -> Space:
    """Return the space in a file of tune_spaces (a Python file: it is executed).

    Raises UserError for a missing name, an unknown field, or a metric that is not held out.
    """
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"no search space {path}{did_you_mean(path.stem, known)}; there are {', '.join(known) or 'none'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in ("RECIPE", "SPACE", "METRIC", "MODE") if not hasattr(module, name)]
    if missing or not module.__doc__:
        raise UserError(
            f"{path}: a space needs a docstring with its question, RECIPE, SPACE, METRIC and MODE; missing: {missing or 'docstring'}"
        )
    space = Space(path.stem, module.__doc__.strip(), module.RECIPE, module.SPACE, module.METRIC, module.MODE)
    check_space(space, named(space.recipe).config)
    return space


def check_space(space: Space, config: Config) -> None:
    """Raise UserError for a space that would choose on the test sets or vary a field that does not exist."""
    if not space.metric.startswith("val/"):
        raise UserError(
            f"space {space.name}: METRIC is {space.metric!r}; only val/... may choose, a test metric would be selection on the suite"
        )
    if space.mode not in ("min", "max"):
        raise UserError(f"space {space.name}: MODE is {space.mode!r}; it is min or max")
    known = flatten(config)
    for path in space.space:
        if path not in known:
            raise UserError(f"space {space.name}: unknown recipe key {path!r}{did_you_mean(path, known)}")


def count(space: Space, samples: int) -> int:
    """Return how many trials a space has: the product of its grids times the samples."""
    total = samples
    for values in space.space.values():
        total *= len(values["grid_search"]) if isinstance(values, Mapping) and "grid_search" in values else 1
    return total
