"""Random resized crops: keyed by image, inside the image, differentiable."""

import pytest
import torch

from robustclip.views.crops import AREA, RATIO, boxes, crops

KEYS = [(0, "views", f"image/{i}") for i in range(4)]


def coordinates(n=4, side=32):
    """Return images whose channels are the x and y of each pixel's centre in [0,1]."""
    line = (torch.arange(side) + 0.5) / side
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side), torch.zeros(side, side)]).expand(n, -1, -1, -1)


def test_a_crop_depends_on_its_image_and_key_alone():
    images = torch.rand(4, 3, 8, 8)
    whole = crops(images, KEYS, 5)
    assert whole.shape == (4, 5, 3, 8, 8)
    backwards = crops(images.flip(0), KEYS[::-1], 5).flip(0)
    alone = torch.cat([crops(images[i : i + 1], KEYS[i : i + 1], 5) for i in range(4)])
    assert torch.equal(whole, backwards)
    assert torch.equal(whole, alone)
    assert not torch.allclose(whole, crops(images, [(1, *key[1:]) for key in KEYS], 5))


def test_crops_are_upright_boxes_of_the_published_sizes_half_of_them_flipped():
    seen = crops(coordinates(), KEYS, 200).flatten(0, 1)[..., 8:24, 8:24]  # away from the border, which is repeated
    x, y = seen[:, 0], seen[:, 1]
    assert torch.allclose(x, x[:, :1], atol=1e-5), "neither turned nor sheared"
    assert torch.allclose(y, y[:, :, :1], atol=1e-5)
    step_x, step_y = x[:, 0, 1] - x[:, 0, 0], y[:, 1, 0] - y[:, 0, 0]
    w, h = step_x.abs() * 32, step_y * 32
    assert (h > 0).all()
    assert 0.4 < (step_x < 0).float().mean() < 0.6
    area, ratio = w * h, w / h
    assert AREA[0] - 1e-3 < area.min() < 0.15
    assert 0.9 < area.max() < AREA[1] + 1e-3
    assert RATIO[0] - 1e-3 < ratio.min()
    assert ratio.max() < RATIO[1] + 1e-3
    assert seen[:, :2].min() >= 0
    assert seen[:, :2].max() <= 1


@pytest.mark.parametrize("shape", [(4, 64), (64, 4)])
def test_an_image_that_no_box_fits_still_has_crops_inside(shape):
    theta = boxes([(0, "x")], 50, *shape)[0]
    for side, place in ((theta[:, 0, 0].abs(), theta[:, 0, 2]), (theta[:, 1, 1], theta[:, 1, 2])):
        assert (side <= 1).all()
        assert (place.abs() + side <= 1 + 1e-6).all()


@pytest.mark.parametrize("shape", [(20, 100), (100, 20), (30, 90)])
def test_no_box_of_a_wide_or_high_image_leaves_the_published_ratios(shape):
    """Where ten draws do not fit it is the largest box of 4:3, or 3:4, in the middle, as torchvision takes it."""
    height, width = shape
    theta = boxes([(0, "x")], 500, height, width)[0]
    ratio = theta[:, 0, 0].abs() * width / (theta[:, 1, 1] * height)
    assert RATIO[0] - 1e-5 < ratio.min()
    assert ratio.max() < RATIO[1] + 1e-5
    middle = (theta[:, 0, 2].abs() < 1e-6) & (theta[:, 1, 2].abs() < 1e-6)
    assert 0 < middle.sum() < 250
    nearest = min(max(width / height, RATIO[0]), RATIO[1])
    assert torch.allclose(ratio[middle], torch.tensor(nearest), atol=1e-5)
    assert torch.allclose(torch.maximum(theta[middle, 0, 0].abs(), theta[middle, 1, 1]), torch.tensor(1.0))


def test_pixels_get_a_gradient_through_their_crops():
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    (g,) = torch.autograd.grad(crops(images, KEYS[:2], 8).square().sum(), images)
    assert (g.flatten(1).abs().amax(1) > 0).all()
