"""Numbers by key: the published generator, its known answers, and nothing that a batch, an order or a piece could change."""

import math

import pytest
import torch

from robustclip.base import draws
from robustclip.base.draws import normal, philox, uniform, words
from robustclip.base.seeds import derive

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KEYS = [(0, "start", f"image/{i}") for i in range(6)]
# Counter, key and answer of Philox4x32-10, as its authors publish them with their library.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def philox_by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Return the same in Python's own integers, which have no size to overflow."""
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(second >> 32) ^ counter[1] ^ key[0], second & ONES, (first >> 32) ^ counter[3] ^ key[1], first & ONES]
        key = [(key[0] + 0x9E3779B9) & ONES, (key[1] + 0xBB67AE85) & ONES]
    return counter


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    found = philox([torch.tensor(word) for word in counter], [torch.tensor(word) for word in key])
    assert [int(word) for word in found] == list(answer) == philox_by_hand(list(counter), list(key))


def test_a_stream_is_that_of_its_keys_seed():
    found = words(KEYS, 10)
    for key, row in zip(KEYS, found.tolist()):
        seed = derive(*key)
        expected = [word for block in range(3) for word in philox_by_hand([block, 0, 0, 0], [seed & ONES, seed >> 32])]
        assert row == expected[:10]


def test_numbers_are_floats_of_24_bits_of_their_words():
    bits, found = words(KEYS, 4096), uniform(KEYS, 4, 1024)
    assert torch.equal(found.double().flatten(1), (bits >> 8).double() / 2**24)
    assert found.min() >= 0
    assert found.max() < 1


@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_no_batch_order_or_piece_changes_a_number(monkeypatch, at_once):
    whole = uniform(KEYS, 3, 50)
    monkeypatch.setitem(draws.AT_ONCE, "cpu", at_once)
    assert torch.equal(uniform(KEYS, 3, 50), whole)
    assert torch.equal(uniform(KEYS[::-1], 3, 50).flip(0), whole)
    assert torch.equal(torch.cat([uniform([key], 3, 50) for key in KEYS]), whole)
    for first in (1, 4, 7, 2**34 - 1):  # the last passes over into the counter's second word
        assert torch.equal(uniform(KEYS, 11, first=first)[:, 5:], uniform(KEYS, 6, first=first + 5))
    assert torch.equal(uniform(KEYS, 9, first=7), whole.flatten(1)[:, 7:16])
    assert len(words(KEYS, 40, 2**34).unique()) == 240


def test_other_keys_draw_other_numbers():
    found = uniform([*KEYS, (1, *KEYS[0][1:]), (0, "noise", KEYS[0][2])], 1000)
    close = torch.corrcoef(found) - torch.eye(len(found))
    assert close.abs().max() < 5 / math.sqrt(1000)


def test_uniform_and_normal_numbers_are_distributed_as_they_say():
    u, z = uniform(KEYS, 50_000).flatten().double(), normal(KEYS, 50_000).flatten().double()
    n = len(u)
    for sample, cdf in ((u, u.sort().values), (z, torch.special.ndtr(z.sort().values))):
        steps = torch.arange(1, n + 1, dtype=torch.float64) / n
        assert (cdf - steps).abs().max() < 1.95 / math.sqrt(n), "Kolmogorov and Smirnov, 0.1 %"
        pairs = sample[:-1] - sample.mean(), sample[1:] - sample.mean()
        assert abs(float((pairs[0] * pairs[1]).mean() / sample.var())) < 4 / math.sqrt(n), "neighbours go together"
    assert torch.equal(normal(KEYS, 8), torch.cat([normal([key], 8) for key in KEYS]))


def test_but_on_a_cpu_many_images_are_drawn_at_once(monkeypatch):
    calls, made = [], draws.philox
    monkeypatch.setattr(draws, "philox", lambda *given: calls.append(1) or made(*given))
    assert uniform([(0, "start", i) for i in range(256)], 3, 224, 224, device="meta").shape == (256, 3, 224, 224)
    assert len(calls) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_bits():
    assert torch.equal(uniform(KEYS, 3, 224, 224, device="cuda").cpu(), uniform(KEYS, 3, 224, 224))
    torch.testing.assert_close(normal(KEYS, 1000, device="cuda").cpu(), normal(KEYS, 1000))
