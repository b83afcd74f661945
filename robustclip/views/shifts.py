"""Images moved by a few pixels and flipped, each by its own key: what small pictures are trained on, which crops would spoil."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key, uniform

PIXELS = 4  # He et al. 2016 (arXiv:1512.03385, section 4.2), on 32 px


def shifts(images: Tensor, keys: Sequence[Key], pixels: int = PIXELS) -> Tensor:
    """Return images [B,C,H,W], half of them flipped, each moved by up to `pixels` in both directions, the border mirrored.

    Image i's draws come from keys[i] alone.
    """
    drawn = uniform(keys, 3, device=images.device)
    dy, dx = (drawn[:, :2] * (2 * pixels + 1)).long().T
    return windows(torch.where(drawn[:, 2].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images), dy, dx, pixels)


def windows(images: Tensor, dy: Tensor, dx: Tensor, pixels: int) -> Tensor:
    """Return what is seen of images [B,C,H,W], their border mirrored by `pixels`, from dy and dx [B], of 0 to 2 `pixels`, on."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (pixels,) * 4, mode="reflect")
    rows = dy[:, None] + torch.arange(height, device=images.device)
    columns = dx[:, None] + torch.arange(width, device=images.device)
    index = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[index, channels, rows[:, None, :, None], columns[:, None, None, :]]
