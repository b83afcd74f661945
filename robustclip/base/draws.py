"""Numbers by key, made where they are used: a counter-based generator in integer tensor operations, the same on every device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustclip.base.seeds import derive

Key = tuple[str | int, ...]
MULTIPLIERS, STEPS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
LOW = 0xFFFFFFFF  # the lower 32 bits
# Blocks of four numbers that are worked on at a time, some twenty words of 8 bytes each: in a CPU's cache, and enough to keep a GPU busy.
AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 22}


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Return Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of four counter and two key words.

    Words are 32 bits in int64, of shapes that broadcast. A product of two wraps around in int64, which leaves its 64 bits as they are.
    """
    (a, b, c, d), (k, m) = counter, key
    for _ in range(ROUNDS):
        p, q = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (q >> 32 & LOW) ^ b ^ k, q & LOW, (p >> 32 & LOW) ^ d ^ m, p & LOW
        k, m = k + STEPS[0] & LOW, m + STEPS[1] & LOW
    return [a, b, c, d]


def words(keys: Sequence[Key], count: int, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return the numbers `first` to `first + count` of every key's stream: 32 bits in int64, [N,count]."""
    seeds = torch.tensor([derive(*key) for key in keys], dtype=torch.int64, device=device)[:, None]
    start, end = first // 4, -(-(first + count) // 4)
    blocks = torch.arange(start, end, device=device)
    zero = torch.zeros_like(blocks[:1])
    size = AT_ONCE.get(blocks.device.type, AT_ONCE["cuda"])
    rows = max(1, size // max(1, len(blocks)))
    made = [
        torch.cat([torch.stack(philox([part & LOW, part >> 32, zero, zero], [own & LOW, own >> 32]), -1) for part in blocks.split(size)], 1)
        for own in seeds.split(rows)
    ]
    return torch.cat(made).flatten(1)[:, first - 4 * start :][:, :count]


def uniform(keys: Sequence[Key], *shape: int, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return numbers [N,*shape] in [0,1) of 24 bits, float32: those of each key's stream from its number `first` on."""
    return _uniform(words(keys, math.prod(shape), first, device)).view(len(keys), *shape)


def _uniform(bits: Tensor) -> Tensor:
    return (bits >> 8).to(torch.float32) * 2.0**-24


def normal(keys: Sequence[Key], *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Return standard normal numbers [N,*shape], float32 (Box & Muller 1958, in float64: equal to rounding on every device)."""
    count = math.prod(shape)
    u = (words(keys, 2 * count, 0, device).double() + 0.5) * 2.0**-32
    radius, angle = (-2 * u[:, :count].log()).sqrt(), 2 * math.pi * u[:, count:]
    return (radius * angle.cos()).float().view(len(keys), *shape)
