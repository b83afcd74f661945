"""Every file of tune_spaces: it loads, all it samples makes a valid config, and its figure's data are well formed."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import flatten, from_json, key, override, to_json
from robustclip.results.figures import LEGEND, short
from robustclip.sweeps import spaces, trends
from robustclip.sweeps.report import order
from robustclip.sweeps.spaces import Space
from robustclip.sweeps.trials import Trial
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config
from robustclip.training.installing import install
from robustclip.training.job import prepare

FOLDER = Path(__file__).parent.parent / "tune_spaces"
SPACES = {path.stem: spaces.load_space(path) for path in sorted(FOLDER.glob("*.py"))}
SIZES = {
    "epsilon": 4, "interpolation": 5, "loss_weights": 9, "objective_mix": 5, "prompt_design": 7, "prompt_size": 9, "strength": 6,
    "multimodal": 14, "few_shot": 10, "towers": 6, "train_size": 10, "trainable": 14, "views": 6, "tuning_steps": 9, "alignment": 4,
    "first_blocks": 16, "tapt": 3,
}  # fmt: skip
WITH_PAPER = {"epsilon", "interpolation", "prompt_design", "train_size"}


def combinations(space: Space) -> list[dict[str, Any]]:
    grids = {path: space.grid(path) for path in space.space}
    return [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]


def test_every_space_is_here_with_its_size() -> None:
    assert SIZES.items() <= {name: spaces.count(space, 1) for name, space in SPACES.items()}.items()
    assert all(len(combinations(space)) == spaces.count(space, 1) for space in SPACES.values())


def test_every_combination_is_a_config_of_its_own_and_survives_json(space: Space) -> None:
    base, found = spaces.first_config(space), []
    for sample in combinations(space):
        config = spaces.trial_config(space, base, sample)
        assert from_json(Config, to_json(config)) == config
        leaves = flatten(config)
        for path, value in sample.items():
            if path not in (spaces.RECIPE, *spaces.EVALUATED):
                assert leaves[path] == (type(value).__name__ if hasattr(value, "__dataclass_fields__") else to_json(value))
        found.append(key(config))
    assert len(set(found)) == (1 if set(space.space) <= set(spaces.EVALUATED) else len(found))


def test_labels_tell_the_trials_apart(space: Space) -> None:
    labels = [Trial(sample, "").label for sample in combinations(space)]
    assert len({short(label, LEGEND) for label in labels}) == len(labels)


def test_every_trial_has_a_place_in_the_figure(space: Space) -> None:
    if space.axis is None:
        assert space.name not in SIZES
        return
    places = [trends.place(space.axis, sample) for sample in combinations(space)]
    assert len(set(places)) == len(places)
    kind = str if space.axis.scale in trends.NAMES else int | float
    assert all(isinstance(x, kind) for x, _ in places)
    assert space.axis.scale != "log" or all(x > 0 for x, _ in places)
    assert space.axis.label


def test_published_points_are_well_formed(space: Space) -> None:
    assert (space.published is not None) == (space.name in WITH_PAPER)
    if space.published is None:
        return
    assert "arXiv:2212.07016, Fig. " in space.published.source
    assert space.published.curves
    assert len({type(point.x) for curve in space.published.curves.values() for point in curve}) == 1
    for curve in space.published.curves.values():
        assert len({point.x for point in curve}) == len(curve) >= 3
        for point in curve:
            assert point.robust is not None
            assert 0 <= point.robust <= 100
            assert point.clean is None or point.robust < point.clean <= 100


def test_prompts_of_the_design_space_are_as_large_as_it_says() -> None:
    sizes = []
    for sample in combinations(SPACES["prompt_design"]):
        _, learned = install(sample["trainable"], models.load("tiny-vit8"), 0, ["a"])
        sizes.append(sum(p.numel() for p in learned))
    assert sizes == [2304, 2304, 2304, 2352, 2352, 3072, 2304]


def test_the_smallest_training_set_is_longer_than_its_warm_up() -> None:
    for space in (SPACES["train_size"], SPACES["few_shot"]):
        for sample in combinations(space):
            config = spaces.trial_config(space, spaces.first_config(space), sample)
            if config.data.per_class is not None:
                assert config.optim.warmup < config.data.per_class * 288 // config.optim.batch * config.optim.epochs


def test_the_runs_of_tecoa_in_both_spaces_of_sizes_are_the_same() -> None:
    keys = []
    for space in (SPACES["train_size"], SPACES["few_shot"]):
        samples = [sample for sample in combinations(space) if sample["recipe"] == "demo"]
        keys.append({key(spaces.trial_config(space, spaces.first_config(space), sample)) for sample in samples})
    assert keys[0] == keys[1]
    assert len(keys[0]) == 5


def test_in_a_table_all_images_stand_behind_the_numbers() -> None:
    space = SPACES["train_size"]
    trials = sorted((Trial(sample, "") for sample in combinations(space)), key=lambda trial: order(space, trial))
    assert [trial.sample["data.per_class"] for trial in trials[::2]] == [1, 4, 16, 64, None]


def test_what_is_sampled_can_train_on_the_embedded_model() -> None:
    configs = [
        spaces.trial_config(space, spaces.first_config(space), sample) for space in SPACES.values() for sample in combinations(space)
    ]
    pairs = {(type(config.defense), config.trainable): config for config in configs}
    for config in pairs.values():
        check_pair(config.defense, config.trainable)
        _, learned = install(config.trainable, models.load(config.model), 0, ["a"])
        assert sum(p.numel() for p in learned) > 0


@pytest.mark.slow
def test_the_world_has_as_many_images_of_every_class_as_the_largest_training_set_takes(tmp_path: Path) -> None:
    space = SPACES["train_size"]
    config = override(spaces.first_config(space), {"data.per_class": 64})
    job = prepare(config, str(tmp_path))
    assert len(job.train_rows) == 64 * 288
    with pytest.raises(UserError, match=r"more than the .* training images of the class"):
        prepare(override(config, {"data.rendered": 20_000}), str(tmp_path))
