"""Numbers out of range are refused the same wherever they come from: command line, recipe key, config or call."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from robustclip.attacks import APGD, APGDT, FABT, PGD, Noise, Square
from robustclip.attacks.levels import Aimed
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import Neighbours, RandomWords
from robustclip.attacks.transfer import MIFGSM
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT, DECAY, SEED, SHARE, Number, Whole
from robustclip.base.values import override, value_of
from robustclip.commands import evaluate, moments, prepare, pretrain, retrieve, sweep, train, words
from robustclip.evaluation import evaluator, protocols
from robustclip.evaluation.rules import SetRule
from robustclip.sweeps import tuning
from robustclip.test_time import DBD, TTC
from robustclip.test_time.tpt import TPT
from robustclip.training import statistics
from robustclip.training.config import Config

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("numbers", "those", "others"),
    [
        (COUNT, [1, 10**30], [0, -1, 1.0, True, "1", None, NAN]),
        (Whole(0, 3), [0, 3], [-1, 4]),
        (SEED, [0, 2**32 - 1], [-1, 2**32]),
        (AMOUNT, [0, 0.0, 1e300], [-1e-9, NAN, INF, True, "0"]),
        (SHARE, [0, 1, 0.5], [1.0001, -0.1]),
        (DECAY, [0, 0.999], [1, 1.0]),
        (Number(2.0, 3.0), [2, 3], [1.9, 3.1]),
    ],
    ids=str,
)
def test_a_range_has_its_numbers_and_no_others(numbers: Any, those: list[Any], others: list[Any]) -> None:
    assert [value for value in those if not numbers.has(value)] == []
    assert [value for value in others if numbers.has(value)] == []


COMMANDS = {
    "evaluate": (evaluate, ["tiny-vit8"], ["--n", "--actors"], ["--gpus"]),
    "retrieve": (retrieve, ["tiny-vit8"], ["--n", "--actors", "--recall"], ["--gpus"]),
    "moments": (moments, ["tiny-vit8"], ["--n", "--workers", "--resize"], ["--gpus"]),
    "train": (train, ["demo"], ["--workers"], []),
    "sweep": (sweep, [], ["--workers", "--concurrent", "--samples"], ["--gpus"]),
    "prepare": (prepare, ["world:shapes"], ["--images"], []),
    "pretrain": (pretrain, ["tiny-vit8", "--to", "x"], ["--threads"], []),
    "words": (words, ["bert"], ["--k"], []),
}
OPTIONS = [
    (name, option, value) for name, (_, _, counts, _) in COMMANDS.items() for option in counts for value in ("0", "-1", "1.5", "two", "")
]
OPTIONS += [
    (name, option, value) for name, (*_, shares) in COMMANDS.items() for option in shares for value in ("-1", "nan", "inf", "1.5", "x")
]
OPTIONS += [(name, "--eps", value) for name in ("evaluate", "retrieve") for value in ("-1", "nan", "inf", "two")]
OPTIONS += [("moments", "--seed", "-1"), ("prepare", "--render-seed", "-1"), ("prepare", "--images", "1000000000000")]


@pytest.mark.parametrize(("name", "option", "value"), OPTIONS, ids=[" ".join(each) for each in OPTIONS])
def test_an_option_takes_its_numbers_and_no_others(name: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, needed, *_ = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [f"robustclip {name}", *needed, f"{option}={value}"])
    with pytest.raises(UserError, match=rf"argument {option}: takes .* number .*, not '{value}'; see robustclip {name} --help"):
        module.asked()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, "0")
            for key in ("data.n", "data.per_class", "data.held_out", "data.rendered", "data.resize", "optim.batch", "optim.epochs")
        ),
        *((key, "0") for key in ("optim.micro_batch", "validation.images", "checkpoint_every")),
        *(
            (key, "-1")
            for key in ("seed", "attack.steps", "attack.alpha", "optim.lr", "optim.warmup", "validation.steps", "validation.eps")
        ),
        *((key, "NaN") for key in ("attack.alpha", "optim.lr", "optim.weight_decay", "optim.eps", "validation.eps", "threat.image.eps")),
        *((key, "1" + 400 * "0") for key in ("optim.lr", "validation.eps", "threat.image.eps")),
        ("optim.ema", "1"),
        ("optim.betas", "[0.9, 1]"),
        ("seed", str(2**32)),
    ],
)
def test_a_recipe_key_takes_its_numbers_and_no_others(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"{key}(\[1\])? is "):
        override(Config(), {key: value_of(value)})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PGD(-1),
        lambda: PGD(restarts=0),
        lambda: APGD(restarts=0),
        lambda: APGDT(targets=0),
        lambda: FABT(steps=-1),
        lambda: Square(queries=-1),
        lambda: Noise(0),
        lambda: MIFGSM(kernel=0),
        lambda: Aimed("A3", PGD(2), draws=0),
        lambda: Neighbours(k=0),
        lambda: RandomWords(k=-1),
        lambda: TextAttack(width=0),
        lambda: TPT(views=0),
        lambda: TTC(steps=-1),
        lambda: DBD(kept=0),
        lambda: SetRule("cifar10", classes=0),
        lambda: protocols.named("smoke").changed(n=0),
        lambda: protocols.named("smoke").changed(n=-1),
        lambda: protocols.named("smoke").changed(micro_batch=0),
        lambda: protocols.named("smoke").changed(attacked=0),
        lambda: evaluator.evaluate([], None, "", actors=-1),  # type: ignore[arg-type]
        lambda: statistics.statistics("tiny-vit8", statistics.Images(), "", workers=0),
        lambda: tuning.sweep(None, None, None, "", None, concurrent=0),  # type: ignore[arg-type]
    ],
)
def test_a_call_takes_its_numbers_and_no_others(wrong: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r" is -?\d+: it takes a whole number|kernel an odd side"):
        wrong()


def test_what_is_empty_changes_no_protocol() -> None:
    smoke = protocols.named("smoke")
    assert smoke.changed(sets=(), attacks=(), eps=(), n=None, independent=False) is smoke
