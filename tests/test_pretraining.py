"""Pre-training: the contrastive loss by its definition, shifts by hand, and a tiny model that learns from a tiny corpus."""

import math

import pytest
import torch
import torch.nn.functional as F

from robustclip import names as models
from robustclip.base.seeds import generator
from robustclip.data import world
from robustclip.models.checkpoints import build, save, tokenizer_from
from robustclip.models.model import FORMAT, Model, tensors_sha256
from robustclip.training.pretraining import Pretraining, card, contrastive_loss, parameter_groups, pretrain, shifted

MERGES = 100
CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 512 + MERGES + 2, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "size": 32},
}
SMALL = Pretraining(pairs=128, steps=100, batch=32, lr=8e-3, warmup=5, shift=1, merges=MERGES)


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_loss_is_the_mean_of_both_directions():
    z, t, scale = unit(5, 8, 0), unit(5, 8, 1), torch.tensor(7.0)
    similarity = (scale * z @ t.T).exp()
    expected = -0.5 * ((similarity.diagonal() / similarity.sum(1)).log() + (similarity.diagonal() / similarity.sum(0)).log()).mean()
    torch.testing.assert_close(contrastive_loss(z, t, scale), expected)
    order = torch.tensor([3, 1, 0, 4, 2])
    torch.testing.assert_close(contrastive_loss(z[order], t[order], scale), expected)
    torch.testing.assert_close(contrastive_loss(t, z, scale), expected)
    assert not math.isclose(contrastive_loss(z[order], t, scale).item(), expected.item(), rel_tol=1e-2)


def test_no_shift_changes_nothing():
    x = torch.rand(3, 3, 5, 6)
    assert shifted(x, 0, generator(0)) is x


def test_shifts_are_mirrored_windows_each_image_its_own():
    """Every image is one of the 25 windows of its mirrored self, all channels alike, and all 25 occur."""
    x = torch.rand(1, 3, 5, 6)
    padded = F.pad(x, (2,) * 4, mode="reflect")
    windows = torch.stack([padded[0, :, dy : dy + 5, dx : dx + 6] for dy in range(5) for dx in range(5)])
    moved = shifted(x.expand(400, -1, -1, -1), 2, generator(0))
    same = (moved[:, None] == windows[None]).flatten(2).all(2)
    assert same.any(1).all()
    assert same.any(0).all()


def test_a_shift_by_hand():
    row = torch.arange(4.0).expand(1, 1, 3, 4)
    found = {tuple(shifted(row, 1, generator(seed))[0, 0, 1].tolist()) for seed in range(30)}
    assert found == {(0, 1, 2, 3), (1, 0, 1, 2), (1, 2, 3, 2)}


def test_weight_decay_spares_gains_biases_and_the_scale():
    model = build(CONFIG)
    matrices, others = parameter_groups(model, 0.1)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for group in (matrices, others) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert any(p is model.logit_scale for p in others["params"])
    assert all(p.ndim >= 2 for p in matrices["params"])


@pytest.fixture(scope="module")
def trained():
    """Return the trained tiny model and its losses."""
    torch.set_num_threads(1)
    losses = []
    model = pretrain(CONFIG, SMALL, world.corpus(SMALL.pairs, SMALL.seed), lambda step, loss, model: losses.append((step, loss)))
    return model, losses


def test_a_tiny_model_learns(trained):
    model, losses = trained
    assert [step for step, _ in losses] == list(range(1, SMALL.steps + 1))
    assert losses[0][1] == pytest.approx(math.log(SMALL.batch), abs=0.8)
    assert sum(loss for _, loss in losses[-8:]) / 8 < math.log(SMALL.batch) - 1.5
    assert not model.training
    assert model.logit_scale.exp() <= 100 * (1 + 1e-6)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(trained):
    short = Pretraining(**{**vars(SMALL), "steps": 3})
    torch.manual_seed(5)  # the caller's generator does not matter
    first, again, other = (
        pretrain(CONFIG, recipe, world.corpus(recipe.pairs, recipe.seed), lambda *args: None)
        for recipe in (short, short, Pretraining(**{**vars(short), "seed": 1}))
    )
    hashes = [tensors_sha256(model.state_dict()) for model in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_was_trained_is_a_checkpoint(trained, tmp_path):
    facts = card(SMALL, 12.3)
    assert (facts["seconds"], facts["pretraining"]["steps"], facts["format"]) == (12, 100, FORMAT)
    assert facts["sets"]["shapes"]["class_names"][0] == "circle"
    model = Model("new", trained[0], tokenizer_from(facts, CONFIG), CONFIG, facts)
    save(model, str(tmp_path / "new"), **facts)
    back = models.load(str(tmp_path / "new"))
    assert back.sha256 == model.sha256
    assert back.card["pretraining"]["lr"] == SMALL.lr
