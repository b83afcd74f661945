"""A run is a value: overriding, writing and reading it, and the key that names its work."""

import argparse
import dataclasses
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustclip.base import values
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball, ThreatModel
from robustclip.base.values import flatten, from_json, key, override, to_json
from robustclip.defenses import FARE, PMGAFT, TRADES, Mix, TeCoA
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.runtime import cli
from robustclip.training.config import Config, Optim
from robustclip.training.recipes import RECIPES
from robustclip.training.trainables import VisualTower

LEAVES = {path: value for path, value in flatten(Config(templates=("{}",))).items() if path not in ("defense", "trainable")}
NODES = {"data", "threat", "threat.image", "attack", "optim", "validation"}


def changed(path, value):
    """Return another valid value of a leaf."""
    others = {"optim.name": "sgd", "optim.betas": [0.9, 0.95], "threat.image.norm": "L2", "threat.text": None, "templates": ["a {}"]}
    others |= {"optim.precision": "bf16", "attack.precision": "bf16", "optim.schedule": "constant"}
    others |= {"data.augment": "crop and flip", "optim.recompute": True, "optim.fused": True, "attack.compile": "default"}
    if path in others:
        return others[path]
    return {str: lambda: value + "x", int: lambda: value + 1, float: lambda: value + 0.5, type(None): lambda: 3}[type(value)]()


def test_a_defence_that_compares_images_refuses_micro_batches_of_one():
    with pytest.raises(UserError, match=r"optim\.micro_batch is 1: ImgCoAdv"):
        override(Config(), {"defense": "ImgCoAdv", "optim.micro_batch": 1})
    assert override(Config(), {"defense": "ImgCoAdv", "optim.micro_batch": 2}).optim.micro_batch == 2


def test_override_replaces_leaves_at_any_depth_and_nothing_else():
    base = Config()
    new = override(base, {"threat.image.eps": 2, "optim.lr": 1e-5, "seed": 3, "templates": ["{}"]})
    assert (new.threat.image, new.optim.lr, new.seed, new.templates) == (Ball("Linf", 2.0), 1e-5, 3, ("{}",))
    assert type(new.threat.image.eps) is float
    assert base == Config()
    back = {"threat.image.eps": base.threat.image.eps, "optim.lr": base.optim.lr, "seed": 0, "templates": None}
    assert override(new, back) == base


def test_a_union_member_is_chosen_by_its_type_name_in_any_order():
    assert override(Config(), {"trainable": "TokenPrompt", "trainable.tokens": 3}).trainable == TokenPrompt(3)
    assert override(Config(), {"trainable.tokens": 3, "trainable": "TokenPrompt"}).trainable == TokenPrompt(3)
    assert override(Config(), {"trainable": PixelPrompt("pad", 2)}).trainable == PixelPrompt("pad", 2)
    assert override(Config(trainable=TokenPrompt(5)), {"trainable": "TokenPrompt"}).trainable == TokenPrompt(5)
    assert override(Config(trainable=TokenPrompt(5)), {"trainable": "VisualTower"}).trainable == VisualTower()
    assert override(Config(), {"threat.image": None}).threat == ThreatModel(image=None)


def test_the_parts_of_a_mix_and_their_weights_change_together_in_any_order():
    mix = Mix((TeCoA(), FARE("l1"), TRADES(3.0)), (1.0, 0.5, 0.25))
    parts = ["TeCoA", {"type": "FARE", "distance": "l1"}, {"type": "TRADES", "beta": 3}]
    changes = {"defense.weights": [1, 0.5, 0.25], "defense.parts": parts, "defense": "Mix"}
    for order in (changes, dict(reversed(changes.items()))):
        assert override(Config(), order).defense == mix
    config = Config(defense=mix)
    assert from_json(Config, json.loads(json.dumps(to_json(config)))) == override(Config(), flatten(config)) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim.lrr": 1}, "'optim.lr'"),
        ({"trainble": "TokenPrompt"}, "'trainable'"),
        ({"trainable.tokens": 3}, "unknown recipe key"),  # of a tower
        ({"seed.x": 3}, "unknown recipe key"),
        ({"trainable": "TokenPromt"}, "VisualTower or Towers or LastBlocks or .* or PixelPrompt or TokenPrompt"),
        ({"defense": "TeCoa"}, "APT or Captioned or CleanCE or .* or Mix or .* or TeCoA, not"),
        ({"defense.parts": ["TeCoA"]}, "unknown recipe key"),  # of TeCoA
        ({"defense": "Mix", "defense.parts": ["TeCoA", "Mix"]}, r"defense.parts\[1\]"),
        ({"defense": "Mix", "defense.weights": [1]}, r"weights is \[1.0\]: give one weight, not negative, for each of 2 parts"),
        ({"defense": "LinearAT", "defense.head_share": 1}, "head_share is 1"),
        ({"optim.betas": [0.9]}, "takes tuple"),
        ({"optim.betas": [0.9, 0.99, 0.999]}, "takes tuple"),
        ({"optim.ema": 1}, "optim.ema is 1"),
        ({"optim.precision": "fp16"}, "bf16"),
        ({"optim.lr": "fast"}, "takes float"),
        ({"optim.lr": True}, "takes float"),
        ({"optim.lr": None}, "takes float"),
        ({"trainable": "PixelPrompt", "trainable.shape": "round"}, "fixed patch"),
        ({"optim.epochs": 1.5}, "takes int"),
        ({"optim.epochs": True}, "takes int"),
        ({"optim.name": "adamax"}, "adamw"),
        ({"data": 3}, "takes Data"),
        ({"templates": [1]}, r"templates\[0\]"),
        ({"templates": "a {}"}, "takes tuple"),
        ({"threat.image.eps": -1}, "eps is -1"),
        ({"attack.steps": -1}, "attack.steps is -1"),
        ({"trainable": "TokenPrompt", "trainable.tokens": -1}, "trainable.tokens is -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        override(Config(), changes)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_back_from_json_and_from_its_leaves(name):
    config = RECIPES[name].config
    assert from_json(Config, to_json(config)) == config
    assert override(config, flatten(config)) == config
    if isinstance(config.threat.image, Ball):
        assert override(Config(), flatten(config)) == config


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"type": "Config", "sed": 1}, "no field 'sed'"),
        ({"type": "Optim"}, "not one of Config"),
        ({"type": "Config", "trainable": {"type": "PadPrompt"}}, "VisualTower, Towers, LastBlocks, .*, PixelPrompt, TokenPrompt"),
        ({"type": "Config", "defense": {"type": "Mix", "parts": [{"type": "Mix"}]}}, r"parts\[0\]: Mix has no loss of single images"),
        ({"type": "Config", "optim": {"type": "Optim", "lr": None}}, "lr"),
        ({"type": "Config", "seed": "0"}, "seed"),
        ([1], "config"),
    ],
)
def test_json_of_something_else_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        from_json(Config, wrong)


def test_keys_are_stable(monkeypatch):
    monkeypatch.setattr(values, "RESULT_VERSION", 1)
    assert key({"b": 1, "a": (1, 2.5)}, "weights") == key({"a": [1, 2.5], "b": 1}, "weights") == "61a046eaae548e74"
    assert key(Ball("L2", 0.5)) == "495798e5ebf5a725"
    monkeypatch.setattr(values, "RESULT_VERSION", 2)
    assert key(Ball("L2", 0.5)) != "495798e5ebf5a725"


@pytest.mark.parametrize("path", sorted(LEAVES.keys() - NODES - {"threat.text"}))
def test_every_leaf_is_part_of_the_key(path):
    base = Config(templates=("{}",))
    assert key(override(base, {path: changed(path, LEAVES[path])})) != key(base)


def test_a_later_field_at_its_default_leaves_keys_as_they_were(monkeypatch):
    """Work done before `Optim` had an eps is found again; another eps is another run, and every JSON says it."""
    monkeypatch.setattr(values, "RESULT_VERSION", 2)
    assert key(Optim()) == "d9d3a9c762111aaf"
    assert key(Optim(eps=1e-6)) != key(Optim(eps=1e-8)) == key(Optim())
    assert to_json(Optim())["eps"] == flatten(Config())["optim.eps"] == 1e-8


def test_a_revised_class_says_so_as_json_and_reads_back_with_or_without_it():
    said = to_json(PMGAFT())
    assert said["revision"] == 2
    assert from_json(PMGAFT, said) == from_json(PMGAFT, {"type": "PMGAFT"}) == PMGAFT()
    assert "defense.revision" not in flatten(Config(defense=PMGAFT()))
    assert key(said) != key({name: value for name, value in said.items() if name != "revision"})


def test_types_without_fields_are_part_of_the_key():
    configurations = [Config(), Config(trainable=PixelPrompt()), Config(trainable=TokenPrompt()), Config(threat=ThreatModel(image=None))]
    assert len({key(config) for config in configurations}) == 4
    assert key("a", "b") != key("b", "a") != key("ab")


@given(st.floats(1e-6, 10), st.integers(1, 500), st.sampled_from(["adamw", "sgd"]))
def test_any_optimiser_survives_both_ways(lr, batch, name):
    config = Config(optim=Optim(name=name, lr=lr, batch=batch))
    assert from_json(Config, to_json(config)) == override(Config(), flatten(config)) == config


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
    assert math.isclose(RECIPES["tecoa-b32"].config.optim.lr, 1e-5)


def test_recipe_keys_may_stand_anywhere_in_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("space", nargs="?", default="epsilon")
    parser.add_argument("--asha", action="store_true")
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--data.n", "5000", "--asha", "--seed=3", "--trainable", "TokenPrompt"])
    args, changes = cli.parse(parser, Config)
    assert (args.space, args.asha) == ("epsilon", True)
    config = override(Config(), changes)
    assert (config.data.n, config.seed, config.trainable, list(changes)) == (5000, 3, TokenPrompt(), ["data.n", "seed", "trainable"])
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--optim.lr", "0.1", "other"])
    assert cli.parse(parser, Config)[0].space == "other"
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--optim.lr"])
    with pytest.raises(UserError, match=r"optim\.lr"):
        cli.parse(parser, Config)
