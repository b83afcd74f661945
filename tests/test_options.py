"""Whatever is asked of a command: what it refuses is refused in one line, soon, and nothing but that comes out of its first phase.

`asked()` of every command reads the command line and everything that can be said of it before data, models, Ray and MLflow are touched.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustclip import __main__
from robustclip.base.errors import UserError
from robustclip.base.values import flatten, override
from robustclip.commands import evaluate, export, moments, prepare, pretrain, report, reproduce, retrieve, sweep, train, words
from robustclip.defenses import DEFENSES, LEAF, PAIRED
from robustclip.evaluation import protocols
from robustclip.training.job import prepare as prepare_job
from robustclip.training.recipes import RECIPES
from robustclip.training.trainables import TRAINABLES

SOON = 10.0  # seconds of work; what waits instead runs into the time limit
MODULES: dict[str, Any] = {
    "evaluate": evaluate,
    "export": export,
    "moments": moments,
    "prepare": prepare,
    "pretrain": pretrain,
    "report": report,
    "reproduce": reproduce,
    "retrieve": retrieve,
    "sweep": sweep,
    "train": train,
    "words": words,
}
NUMBERS = ["0", "1", "2", "64", "-1", "2.5", "1e-3", "nan", "inf", "-inf", "1e400", "9" * 5000, "1" + "0" * 400, "0x10", "1_0", "٣"]
JSON = [
    "null",
    "None",
    "true",
    "[]",
    "[1]",
    '["a {}"]',
    "{}",
    '{"type": "TeCoA"}',
    '{"type": []}',
    '{"type": "Mix", "parts": [1]}',
    "[" * 5000,
]
NAMES = [
    "",
    " ",
    "101",
    "shapes",
    "demo",
    "smoke",
    "tiny-vit8",
    "../x",
    "a b",
    "-x",
    "--",
    "=",
    "{}",
    "no {",
    "\ufeff",
    "名前",
    "$HOME",
    "'",
]
KINDS = ["TeCoA", "Mix", "Table", "LEAF", "TokenPrompt", "JointTokens", "LoRA", "Towers", "L2", "adam", "bf16", "random patch", "pgd-10"]
MODELS = [
    "open_clip:x/y",
    "tpt[views=0]:tiny-vit8",
    "tpt[views]:x",
    "ttc[eps=nan]:x",
    "interpolate:2:x",
    "interpolate:",
    "ensemble:a,a",
    "towers:a",
]
PLACES = ["s3://", "file:///tmp/x", "ftp://x", "~", "/dev/null/x", "a,b", "a]", "world:", "world:shapes", "world:shaeps"]
VALUES = st.one_of(st.sampled_from([*NUMBERS, *JSON, *NAMES, *KINDS, *MODELS, *PLACES]), st.text(max_size=6))
GOOD: dict[str, list[str]] = {
    "--protocol": list(protocols.PROTOCOLS),
    "--attacks": ["pgd-10", "autoattack", "text:char"],
    "--recipe": list(RECIPES),
    "--as": ["open_clip", "hf", "visual"],
    "--crop": ["train", "centre"],
    "--trainable": [kind.__name__ for kind in TRAINABLES],
    "--defense": [kind.__name__ for kind in (*DEFENSES, *PAIRED, LEAF)],
    "--out": ["outputs"],
}
POSITIONAL = {"train": [*RECIPES, "demmo", ""], "sweep": ["epsilon", "method", "epsilom", "../x"], "pretrain": ["tiny-vit8", "photos", "x"]}


def options(name: str) -> list[str]:
    """Return the options of a command, recipe keys among them."""
    own = [option for action in MODULES[name].parser()._actions for option in action.option_strings if "help" not in action.dest]
    keys = sorted({path for recipe in RECIPES.values() for path in flatten(recipe.config)}) if name in ("train", "sweep") else []
    return [option for option in own if option != "-h"] + [f"--{key}" for key in keys]


def lines(name: str) -> Any:
    """Return a strategy of command lines: one or two positional words, and some options with values, joined or apart."""
    first = st.lists(st.sampled_from(POSITIONAL[name]) if name in POSITIONAL else VALUES, min_size=1, max_size=2)
    option = st.sampled_from(options(name)).flatmap(
        lambda key: st.tuples(st.just(key), st.one_of(VALUES, st.sampled_from(GOOD.get(key, NUMBERS))), st.booleans())
    )
    parts = st.lists(option, max_size=4).map(
        lambda chosen: [word for key, value, joined in chosen for word in ([f"{key}={value}"] if joined else [key, value])]
    )
    return st.tuples(first, parts).map(lambda both: [*both[0][: 1 if name in POSITIONAL else 2], *both[1]])


def outcome(name: str, line: list[str], work: Callable[[Any], Any] = lambda asked: None) -> str | None:
    """Return how a command line is refused, None where it is not; whatever else comes out is the test's."""
    started = time.process_time()
    try:
        with patch.object(sys, "argv", [f"robustclip {name}", *line]):
            work(MODULES[name].asked())
        said = None
    except UserError as error:
        said = str(error)
        assert said.strip()
    assert time.process_time() - started < SOON
    return said


def test_every_command_is_tried() -> None:
    assert MODULES.keys() == __main__.COMMANDS.keys()


@pytest.mark.parametrize("examples", [30, pytest.param(250, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODULES)
def test_no_command_line_ends_in_a_traceback(name: str, examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(line=lines(name))
    def tried(line: list[str]) -> None:
        outcome(name, line)

    tried()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_config_ends_in_a_traceback_when_its_images_are_looked_for(tmp_path: Path) -> None:
    """Whatever else is asked of a training on 300 rendered images: it is a job, or refused."""
    here: dict[str, Any] = {"data.name": "shapes", "data.rendered": 300, "data.render_seed": 0, "model": "tiny-vit8"}

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(line=lines("train"))
    def tried(line: list[str]) -> None:
        outcome("train", line, lambda asked: prepare_job(override(asked[1], here), str(tmp_path)))

    tried()
