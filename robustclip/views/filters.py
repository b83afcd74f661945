"""Views that lose fine detail, as a purification does: fewer bits, JPEG, noise and smoothing, differentiable in the pixels."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robustclip.base.draws import Key, normal
from robustclip.views.augmix import as_if_unchanged


def quantised(x: Tensor, bits: int) -> Tensor:
    """Return images rounded to `bits` bits a channel, with the derivative of no rounding."""
    levels = 2**bits - 1
    return as_if_unchanged(x, (levels * x).round() / levels)


def compressed(x: Tensor, quality: int) -> Tensor:
    """Return images as their JPEG of a quality (1 to 100) shows them, with the derivative of no compression."""
    stored = (255 * x.detach()).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    shown = [torch.from_numpy(np.array(Image.open(jpeg_file(image, quality)).convert("RGB"))) for image in stored]
    return as_if_unchanged(x, torch.stack(shown).permute(0, 3, 1, 2).to(x) / 255)


def jpeg_file(image: np.ndarray, quality: int) -> io.BytesIO:
    """Return a file in memory with an image [H,W,3] of bytes as JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file


def smoothed(x: Tensor, line: Tensor) -> Tensor:
    """Return images [N,C,H,W] under the separable filter with weights `line` [k], k odd, that sum to 1; edges are repeated outwards."""
    kernel = torch.outer(line, line).to(x).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, 4 * [len(line) // 2], mode="replicate"), kernel, groups=x.shape[1])


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Return images smoothed by a Gaussian of `sigma` pixels, cut at three of them."""
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    return smoothed(x, weights / weights.sum())


def mean(x: Tensor, side: int) -> Tensor:
    """Return images of which every pixel is the mean of the `side` x `side` around it."""
    return smoothed(x, torch.full((side,), 1 / side, dtype=torch.float64))


def median(x: Tensor, side: int) -> Tensor:
    """Return images of which every value is the median of the `side` x `side` around it in its channel."""
    around = F.pad(x, 4 * [side // 2], mode="replicate").unfold(2, side, 1).unfold(3, side, 1)
    return around.flatten(-2).median(-1).values


SIGMAS = (4.0, 8.0, 16.0)  # of the noise, in 1/255
FILTERS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda x, bits=bits: quantised(x, bits) for bits in (3, 4, 5)),
    *(lambda x, quality=quality: compressed(x, quality) for quality in (50, 70, 90)),
    *(lambda x, sigma=sigma: gaussian(x, sigma) for sigma in (0.5, 1.0, 1.5)),
    *(lambda x, side=side: mean(x, side) for side in (3, 5)),
    *(lambda x, side=side: median(x, side) for side in (3, 5)),
)
COUNT = len(FILTERS) + len(SIGMAS)


def filtered(images: Tensor, keys: Sequence[Key]) -> Tensor:
    """Return COUNT views of each image [S,C,H,W] in [0,1] -> [S,COUNT,C,H,W]: three noisy ones, drawn from keys[i], then all FILTERS."""
    noise = normal([(*key, "noise") for key in keys], len(SIGMAS), *images.shape[1:], device=images.device).to(images)
    noisy = (images[:, None] + noise * torch.tensor(SIGMAS).view(-1, 1, 1, 1).to(images) / 255).clamp(0, 1)
    return torch.cat([noisy, torch.stack([make(images) for make in FILTERS], 1)], 1)
