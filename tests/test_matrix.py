"""Every defence with every trainable on every kind of tower: it trains, or it is refused with a reason (`-s` prints the table)."""

import itertools
from dataclasses import replace

import pytest
from parts import NAMES, ON_FEATURES, SMALL, TEMPLATES, config, learner_of, made, pixels, refusal, step

from robustclip.base.errors import UserError
from robustclip.defenses import DEFENSES, PAIRED, TeCoA
from robustclip.models.dress import TokenPrompt
from robustclip.training.config import InnerAttack
from robustclip.training.learner import Learner
from robustclip.training.trainables import TRAINABLES, LastBlocks, LoRA

KINDS, TURNS = ("vit", "resnet", "siglip"), 8
# Three trainables for each defence, three or four defences for each trainable, on kinds in turn; the others are slow.
ROWS = (*DEFENSES, *PAIRED)
FAST = {(ROWS[i // 3], SMALL[i % len(SMALL)], KINDS[(i // 3 + i // 9 + i) % 3]) for i in range(3 * len(ROWS))}
CELLS = [
    pytest.param(*cell, id="-".join((cell[0].__name__, type(cell[1]).__name__, cell[2])), marks=() if cell in FAST else pytest.mark.slow)
    for cell in itertools.product(ROWS, SMALL, KINDS)
]
SIGNS = {"on the features": "F", "vision transformer": "V", "fixed texts": "T", "with prompts": "P", "not tokens": "W"}
PARTS = (TokenPrompt(4), TokenPrompt(2, deep=True), LoRA(2, 4.0), LastBlocks(1))


@pytest.fixture(scope="module")
def table():
    """Collect what became of each cell and print it, a defence a line, at the end."""
    cells: dict[tuple[str, str, str], str] = {}
    yield cells
    for kind in dict.fromkeys(kind for _, _, kind in cells):
        columns = [type(part).__name__ for part in SMALL]
        print(f"\n{kind:17}" + "".join(f"{column:>16}" for column in columns))
        for row in ROWS:
            print(f"{row.__name__:17}" + "".join(f"{cells.get((row.__name__, column, kind), ''):>16}" for column in columns))
    print(
        "\nloss of 64 images before -> after; refused: on features (F), no ViT (V), fixed texts (T), no prompts (P), no tokens in texts (W)"
    )


def before_and_after(model, settings, pictures):
    """Return the loss of 64 images when what is judged begins to learn and after some steps, attacked from the same starts."""
    x, y, ids = pictures(64, model.preprocess.size)
    learner = learner_of(model, settings, steps=TURNS)
    reports = [step(learner, (pixels(x), y, ids)) for _ in range(TURNS)]
    learner.step = learner.head_steps
    return reports[learner.head_steps]["loss"], step(learner, (pixels(x), y, ids))["loss"]


def settings_of(defense, trainable, kind):
    pace = 0.3 if kind == "resnet" else 1.0
    settings = config(defense, trainable, eps=16.0, batch=64, attack=InnerAttack(1, 0.75), weight_decay=0.0)
    return replace(settings, optim=replace(settings.optim, lr=pace * settings.optim.lr))


@pytest.mark.parametrize(("defense", "trainable", "kind"), CELLS)
def test_a_pair_trains_or_is_refused_with_a_reason(defense, trainable, kind, make_model, pictures, table):
    settings = settings_of(made(defense), trainable, kind)
    if reason := refusal(settings.defense, trainable, kind):
        with pytest.raises(UserError, match=reason):
            Learner(settings, make_model(kind), NAMES, TEMPLATES, TURNS)
        found = next(sign for words, sign in SIGNS.items() if words in reason)
    else:
        first, last = before_and_after(make_model(kind), settings, pictures)
        assert last < 0.98 * first
        found = f"{first:.3g} -> {last:.3g}"
    table[defense.__name__, type(trainable).__name__, kind] = found


@pytest.mark.parametrize("trainable", PARTS, ids=str)
def test_a_timm_tower_trains_in_parts_and_with_prompts(trainable, make_model, pictures):
    first, last = before_and_after(make_model("timm"), settings_of(TeCoA(), trainable, "timm"), pictures)
    assert last < 0.998 * first  # timm starts with weights so small, older releases with smaller ones, that tokens can do little


def test_the_matrix_has_every_part_and_its_fast_cells_meet_each_three_times():
    assert tuple(type(part) for part in SMALL) == TRAINABLES
    assert len(CELLS) == len(ROWS) * len(TRAINABLES) * len(KINDS)
    assert all(sum(cell[0] is defense for cell in FAST) == 3 for defense in ROWS)
    assert all(sum(cell[1] is trainable for cell in FAST) >= 3 for trainable in SMALL)
    assert all(sum(cell[2] == kind and refusal(made(cell[0]), *cell[1:]) is None for cell in FAST) >= 5 for kind in KINDS)
    assert set(ON_FEATURES) == {kind.__name__ for kind in DEFENSES if kind().reads == "features"}
