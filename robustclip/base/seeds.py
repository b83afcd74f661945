"""Randomness by key: every random draw names what it is for, so no result depends on order, batch or worker count."""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*key: str | int) -> int:
    """Return a 63-bit seed that depends on every part of `key`, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: str | int) -> "torch.Generator":
    """Return a CPU torch generator seeded by `key` (seed first, then what the numbers are for)."""
    import torch

    return torch.Generator().manual_seed(derive(*key))


def py_random(*key: str | int) -> random.Random:
    """Return a standard-library generator seeded by `key`."""
    return random.Random(derive(*key))
