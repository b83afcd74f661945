"""Blocks that are computed again give the gradient they gave, hold less, and are refused where a tower has none."""

import pytest
import torch
from parts import NAMES, SMALL, TEMPLATES, config, made, refusal

from robustclip.base.errors import UserError
from robustclip.defenses import MMCoA, TeCoA
from robustclip.training.learner import Learner
from robustclip.training.trainables import LoRA, SameSize, Towers, VisualTower

CHANGED = (LoRA, SameSize)  # weights that are computed themselves
PAIRS = [(TeCoA(), part) for part in SMALL if refusal(TeCoA(), part) is None and not isinstance(part, CHANGED)]
PAIRS += [(made(MMCoA), Towers())]


def learner_of(model, pair, recompute):
    return Learner(config(*pair, batch=8, recompute=recompute), model, NAMES, TEMPLATES, 4)


@pytest.mark.parametrize(
    ("kind", "pair"),
    [*(("vit", pair) for pair in PAIRS), ("timm", PAIRS[0])],
    ids=lambda value: value if isinstance(value, str) else f"{type(value[0]).__name__}-{type(value[1]).__name__}",
)
def test_a_step_is_the_same_to_the_bit(kind, pair, make_model):
    model, learned = make_model(kind), []
    side = model.preprocess.size
    pixels = torch.randint(256, (8, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for recompute in (False, True):
        learner = learner_of(model.copy(), pair, recompute)
        before = torch.cat([p.detach().flatten() for p in learner.parameters])
        learner.accumulate(pixels, torch.arange(8) % 4, [str(i) for i in range(8)])
        learner.update()
        learned.append(torch.cat([p.detach().flatten() for p in learner.parameters]))
    assert not torch.equal(before, learned[0])
    assert torch.equal(*learned)


def test_blocks_are_really_computed_again(tiny_model):
    counts = []
    for recompute in (False, True):
        learner = learner_of(tiny_model.copy(), (TeCoA(), VisualTower()), recompute)
        seen = []
        learner.student.clip.visual.transformer.resblocks[0].register_forward_pre_hook(lambda *given, seen=seen: seen.append(1))
        learner.accumulate(torch.zeros(8, 16, 16, 3, dtype=torch.uint8), torch.arange(8) % 4, [str(i) for i in range(8)])
        counts.append(len(seen))
    assert counts[1] == 2 * counts[0]


@pytest.mark.parametrize(
    ("kind", "trainable", "said"),
    [
        ("resnet", VisualTower(), r"optim\.recompute needs a tower of blocks, and tiny-resnet's is a ModifiedResNet"),
        ("vit", LoRA(2, 4.0), r"optim\.recompute goes with whole weights"),
        ("vit", SameSize(4000), r"optim\.recompute goes with whole weights"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_again_is_refused(kind, trainable, said, make_model):
    with pytest.raises(UserError, match=said):
        learner_of(make_model(kind), (TeCoA(), trainable), True)
