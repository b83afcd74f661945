"""Search spaces: a question as data, checked before anything runs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.values import flatten, override
from robustclip.names import absolute, located
from robustclip.test_time import TestTime
from robustclip.training.config import Config
from robustclip.training.recipes import named

# Sampled keys that are no field of a config: the recipe a trial starts from, and what is evaluated in place of its trained model: one that
# lies so far from CLIP, or the model under a test-time defence (settings of a class in test_time/).
RECIPE, INTERPOLATION, TEST_TIME = "recipe", "interpolation", "test_time"
EVALUATED = (INTERPOLATION, TEST_TIME)
PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = PACKAGE / "tune_spaces" if (PACKAGE / "tune_spaces").is_dir() else PACKAGE.parent / "tune_spaces"  # of a wheel, of a clone
Scale = Literal["linear", "log", "ordered", "categorical"]  # the last two are names, side by side; those in an order are joined


@dataclass(frozen=True)
class Axis:
    """What a space's figure is drawn against: a sampled path and its label; everything else that is sampled makes a line of its own.

    `fields`: where the sampled values are dataclasses, the field that is the x, the first of these that a value has.
    """

    path: str
    label: str
    scale: Scale = "linear"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise UserError(f"AXIS: scale is {self.scale!r}; it is one of {', '.join(get_args(Scale))}")


@dataclass(frozen=True)
class Point:
    """A published point: its x (text is a category), clean and robust accuracy in percent, None where the paper gives none."""

    x: float | str
    clean: float | None
    robust: float | None


@dataclass(frozen=True)
class Published:
    """The paper's answer to a space's question: its curves by name, what they are drawn against, and where they stand."""

    source: str
    label: str
    curves: Mapping[str, tuple[Point, ...]]


@dataclass(frozen=True)
class Space:
    """A question as data: which recipe, which fields vary, and the held-out metric that chooses.

    `fixed` is what every trial changes of its recipe: what the file says, and then the command line. `axis` and `published` are its figure.
    """

    name: str
    question: str
    recipe: str
    space: Mapping[str, Any]
    metric: str
    mode: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    axis: Axis | None = None
    published: Published | None = None

    def grid(self, path: str) -> list[Any]:
        """Return the values of a path's grid, nothing for one that is not sampled; raises UserError for one without a grid."""
        values = self.space.get(path, {"grid_search": []})
        if not isinstance(values, Mapping) or "grid_search" not in values:
            raise UserError(f"space {self.name}: {path!r} takes tune.grid_search([...]), not {values!r}")
        return list(values["grid_search"])


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
    more = {name: getattr(module, name.upper()) for name in ("fixed", "axis", "published") if hasattr(module, name.upper())}
    space = Space(path.stem, module.__doc__.strip(), module.RECIPE, module.SPACE, module.METRIC, module.MODE, **more)
    check_space(space, first_config(space))
    return space


def first_config(space: Space, recipe: str | None = None) -> Config:
    """Return the config that a space starts from: its recipe, or another, with what the space fixes."""
    return override(named(recipe or space.recipe).config, space.fixed)


def starts(space: Space, config: Config) -> list[Config]:
    """Return every config that trials start from: `config`, or one for each recipe that is sampled."""
    return [first_config(space, recipe) for recipe in space.grid(RECIPE)] or [config]


def trial_config(space: Space, config: Config, sample: Mapping[str, Any]) -> Config:
    """Return the config a trial trains: that of the recipe it samples, else `config`, with its sampled fields.

    What is EVALUATED of it is no matter of training: trials that differ in nothing else train the same.
    """
    start = first_config(space, sample[RECIPE]) if RECIPE in sample else config
    return override(start, {path: value for path, value in sample.items() if path not in (RECIPE, *EVALUATED)})


def shared(space: Space, config: Config) -> dict[str, Any]:
    """Return the fields that all trials of a space have in common, by path: what sampled fields or recipes decide is left out."""
    first, *others = map(flatten, starts(space, config))
    same = {path: value for path, value in first.items() if all(path in other and other[path] == value for other in others)}
    return {path: value for path, value in same.items() if not any(f"{path}.".startswith(f"{sampled}.") for sampled in space.space)}


def rooted(space: Space) -> Space:
    """Return the space with models and files by the names that are found from anywhere: a trial runs in a folder of its own."""

    def found(path: str, value: Any) -> Any:
        if isinstance(value, Mapping) and "grid_search" in value:
            return {"grid_search": [found(path, each) for each in value["grid_search"]]}
        if isinstance(value, TestTime):
            return located(value)
        return absolute(value) if path == "model" and isinstance(value, str) else value

    fixed, sampled = ({path: found(path, value) for path, value in each.items()} for each in (space.fixed, space.space))
    return replace(space, fixed=fixed, space=sampled)


def check_space(space: Space, config: Config) -> None:
    """Raise UserError for a space that would choose on the test sets, vary a field that does not exist, or draw what is not sampled."""
    if not space.metric.startswith("val/"):
        raise UserError(
            f"space {space.name}: METRIC is {space.metric!r}; only val/... may choose, a test metric would be selection on the suite"
        )
    if space.mode not in ("min", "max"):
        raise UserError(f"space {space.name}: MODE is {space.mode!r}; it is min or max")
    for known in map(flatten, starts(space, config)):
        for path in space.space:
            if path not in (*known, RECIPE, *EVALUATED):
                near = did_you_mean(path, [*known, RECIPE, *EVALUATED])
                raise UserError(f"space {space.name}: unknown recipe key {path!r}{near}")
    for alpha in space.grid(INTERPOLATION):
        if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise UserError(f"space {space.name}: interpolation takes numbers from 0 (CLIP) to 1 (the fine-tuned model), not {alpha!r}")
    for settings in space.grid(TEST_TIME):
        if not isinstance(settings, TestTime):
            raise UserError(f"space {space.name}: test_time takes settings such as TPT(views=16), not {settings!r}")
    if set(EVALUATED) <= set(space.space):
        raise UserError(f"space {space.name}: combinations of models do not adapt: sample interpolation or test_time")
    if space.axis and space.axis.path not in space.space:
        raise UserError(f"space {space.name}: AXIS is {space.axis.path!r}, which is not sampled; there is {', '.join(space.space)}")
    if space.published and not space.axis:
        raise UserError(f"space {space.name}: PUBLISHED without AXIS has no figure to stand beside")


def grid(space: Space) -> list[dict[str, Any]] | None:
    """Return what the trials of a space sample, in Tune's order; None where a field is drawn."""
    from ray.tune.search.sample import Domain
    from ray.tune.search.variant_generator import generate_variants

    if any(isinstance(each, Domain) for each in space.space.values()):
        return None
    return [dict(sampled) for _, sampled in generate_variants(dict(space.space))]


def count(space: Space, samples: int) -> int:
    """Return how many trials a space has: the product of its grids times the samples."""
    total = samples
    for values in space.space.values():
        total *= len(values["grid_search"]) if isinstance(values, Mapping) and "grid_search" in values else 1
    return total
