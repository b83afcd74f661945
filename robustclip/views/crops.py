"""Random resized crops of images, each drawn from its own key and differentiable in the pixels: for views and for training."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key, uniform

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a crop: share of the image, width to height, draws until one fits


def crops(images: Tensor, keys: Sequence[Key], count: int) -> Tensor:
    """Return `count` random resized crops, half of them flipped, of each image: [S,C,H,W] -> [S,count,C,H,W], bilinear.

    A crop covers 8 to 100 % of the image at a ratio of 3:4 to 4:3, or is the largest central one of that ratio where ten draws do not fit
    (Szegedy et al. 2015, as torchvision draws it, but not rounded to whole pixels). Image i's draws come from keys[i] alone.
    """
    height, width = images.shape[-2:]
    theta = boxes(keys, count, height, width, images.device).flatten(0, 1).to(images)
    many = images.repeat_interleave(count, 0)
    grid = F.affine_grid(theta, list(many.shape), align_corners=False)
    found = F.grid_sample(many, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.view(len(images), count, *images.shape[1:])


def boxes(keys: Sequence[Key], count: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the affine maps [S,count,2,3] from a view of each key onto the box of the image that it shows."""
    drawn = uniform(keys, count, 2 * TRIES + 3, device=device)
    u, place, flip = drawn[..., : 2 * TRIES].unflatten(-1, (TRIES, 2)), drawn[..., -3:-1], drawn[..., -1] < 0.5
    area = (AREA[0] + (AREA[1] - AREA[0]) * u[..., 0]) * height * width
    ratio = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * u[..., 1])
    w, h = (area * ratio).sqrt() / width, (area / ratio).sqrt() / height  # as shares of the image
    fits = (w <= 1) & (h <= 1)
    first = fits.int().argmax(-1, keepdim=True)
    w, h = (side.gather(-1, first)[..., 0] for side in (w, h))
    left, top = place[..., 0] * (1 - w), place[..., 1] * (1 - h)
    # Of a wide or high image none may fit: then it is the largest box of an allowed ratio in the image's middle.
    own = width / height
    nearest = min(max(own, RATIO[0]), RATIO[1])
    wide, high = min(1.0, nearest / own), min(1.0, own / nearest)
    middle = (wide, high, (1 - wide) / 2, (1 - high) / 2)
    w, h, left, top = (torch.where(fits.any(-1), side, other) for side, other in zip((w, h, left, top), middle, strict=True))
    theta = torch.zeros(*w.shape, 2, 3, device=device)
    theta[..., 0, 0], theta[..., 1, 1] = torch.where(flip, -w, w), h
    theta[..., 0, 2], theta[..., 1, 2] = 2 * left + w - 1, 2 * top + h - 1
    return theta
