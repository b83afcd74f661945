"""AugMix: the changes are those of PIL, the mixing is keyed by image, and pixels keep a gradient."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from robustclip.views import augmix as module
from robustclip.views.augmix import CHANGES, NONE, augmix, changed, draws

KEYS = [(0, "views", f"image/{i}") for i in range(4)]
SIDE = 32


@pytest.fixture
def pictures_of_grey():
    """Smooth images with whole grey values, of neither the whole range nor a flat histogram, [2,3,S,S]."""
    line = torch.linspace(0, 6, SIDE)
    waves = torch.stack([(line + i).sin()[:, None] * (line * (1 + i / 3)).cos() for i in range(6)]).view(2, 3, SIDE, SIDE)
    return ((0.55 + 0.42 * waves) * 255).round() / 255


def by_pil(name, image, level):
    """Return what PIL makes of one image [3,S,S], by the published parameters at a tenth of their range."""
    pil = Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())
    size, bilinear = pil.size, Image.Resampling.BILINEAR
    affine = Image.Transform.AFFINE
    made = {
        "autocontrast": lambda: ImageOps.autocontrast(pil),
        "equalize": lambda: ImageOps.equalize(pil),
        "posterize": lambda: ImageOps.posterize(pil, 4),
        "solarize": lambda: ImageOps.solarize(pil, 256 - 25.6 * abs(level)),
        "rotate": lambda: pil.rotate(3 * level, resample=bilinear),
        "shear x": lambda: pil.transform(size, affine, (1, 0.03 * level, 0, 0, 1, 0), resample=bilinear),
        "shear y": lambda: pil.transform(size, affine, (1, 0, 0, 0.03 * level, 1, 0), resample=bilinear),
        "translate x": lambda: pil.transform(size, affine, (1, 0, SIDE / 30 * level, 0, 1, 0), resample=bilinear),
        "translate y": lambda: pil.transform(size, affine, (1, 0, 0, 0, 1, SIDE / 30 * level), resample=bilinear),
        "none": lambda: pil,
    }[name]()
    return torch.from_numpy(np.asarray(made).copy()).permute(2, 0, 1) / 255


@pytest.mark.parametrize("level", [-1.0, -0.6, 0.6, 1.0])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_that_of_pil(pictures_of_grey, name, level):
    got = CHANGES[name](pictures_of_grey, torch.tensor([level, level]))
    for ours, image in zip(got, pictures_of_grey, strict=True):
        inside = (ours - by_pil(name, image, level))[:, 2:-2, 2:-2].abs()  # PIL leaves black what is half outside
        # Other than at single grey values the two differ by rounding: PIL's tables and its bilinear weights are of 8 bit.
        assert (inside <= 2.5 / 255).float().mean() > 0.97
    if name != "none":
        assert not torch.allclose(got, pictures_of_grey, atol=2 / 255)


def test_every_image_gets_its_own_change(pictures_of_grey):
    x = pictures_of_grey[:1].expand(len(CHANGES), -1, -1, -1)
    order = torch.randperm(len(CHANGES), generator=torch.Generator().manual_seed(1))
    level = torch.linspace(-1, 1, len(CHANGES))
    got = changed(x, order, level)
    for i, number in enumerate(order.tolist()):
        alone = list(CHANGES.values())[number](x[:1], level[i : i + 1])
        assert torch.equal(got[i : i + 1], alone)


def test_views_depend_on_their_image_and_key_alone():
    views = torch.rand(4, 5, 3, 8, 8)
    whole = augmix(views, KEYS)
    assert torch.equal(whole, augmix(views.flip(0), KEYS[::-1]).flip(0))
    assert torch.equal(whole, torch.cat([augmix(views[i : i + 1], KEYS[i : i + 1]) for i in range(4)]))
    assert not torch.allclose(whole, augmix(views, [(1, *key[1:]) for key in KEYS]))
    assert whole.min() >= 0
    assert whole.max() <= 1 + 1e-6


def test_what_is_drawn_is_as_published():
    drawn = draws(KEYS[:1], 3000)
    assert torch.allclose(drawn.weights.sum(1), torch.ones(3000), atol=1e-6)
    assert torch.allclose(drawn.weights.mean(0), torch.full((3,), 1 / 3), atol=0.02)
    assert torch.allclose(drawn.weights.var(0), torch.full((3,), 1 / 18), atol=0.01), "Dirichlet(1, 1, 1)"
    assert torch.allclose(drawn.share.quantile(torch.tensor([0.25, 0.75])), torch.tensor([0.25, 0.75]), atol=0.03), "Beta(1, 1)"
    length = (drawn.change != NONE).sum(2)
    assert set(length.flatten().tolist()) == {1, 2, 3}
    shares = torch.bincount(drawn.change[drawn.change != NONE], minlength=NONE) / (drawn.change != NONE).sum()
    assert torch.allclose(shares, torch.full((NONE,), 1 / NONE), atol=0.01)
    assert 0.1 <= drawn.level.abs().min() < 0.11
    assert 0.99 < drawn.level.abs().max() <= 1
    assert abs(float(drawn.level.sign().mean())) < 0.03


@pytest.mark.parametrize("name", CHANGES)
def test_no_change_hides_the_pixels_from_an_attack(pictures_of_grey, name):
    x = pictures_of_grey.clone().requires_grad_()
    (g,) = torch.autograd.grad((CHANGES[name](x, torch.tensor([0.7, -0.7])) * torch.rand(x.shape)).sum(), x)
    assert (g != 0).float().mean() > 0.9
    assert g.isfinite().all()


def test_a_flat_view_stays_finite_and_as_bright():
    x = torch.full((1, 40, 3, 8, 8), 0.5, requires_grad=True)
    assert torch.equal(CHANGES["autocontrast"](x[0], torch.ones(40)), x[0])
    made = augmix(x, KEYS[:1])
    (g,) = torch.autograd.grad(made.sum(), x)
    assert made.isfinite().all()
    assert g.isfinite().all()


def test_a_view_that_keeps_itself_whole_is_itself(monkeypatch):
    views = torch.rand(1, 4, 3, 8, 8)
    monkeypatch.setattr(module, "draws", lambda keys, count, device: draws(keys, count)._replace(share=torch.ones(count)))
    assert torch.allclose(augmix(views, KEYS[:1]), views, atol=1e-6)
