"""The gradients of a step are added up in buckets: the same sums, no copy of all of them, and nothing that is not finite passes."""

import pytest
import torch
from torch import nn

from robustclip.training import gradients
from robustclip.training.gradients import NotFinite, add_up
from robustclip.training.pairing import World

SHAPES = [(3,), (4, 5), (2, 2), (30,), (1,), (6, 2)]
PARTS = {"b": torch.tensor(2.0), "a": torch.tensor([1.0])}


def parameters(seed=0):
    """Return parameters with gradients, one of them not contiguous, and one without."""
    g = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.zeros(shape)) for shape in (*SHAPES, (2,))]
    for p in made[:-1]:
        p.grad = torch.randn(p.shape, generator=g)
    made[1].grad = torch.randn(5, 4, generator=g).T
    return made


def flat(made):
    return torch.cat([p.grad.flatten() for p in made if p.grad is not None])


@pytest.mark.parametrize("size", [1, 8, 25, 1 << 23])
def test_buckets_of_any_size_give_the_sums_of_one_piece(monkeypatch, size):
    monkeypatch.setattr(gradients, "BUCKET", size)
    mine, theirs, sent = parameters(0), parameters(1), []
    add_up(theirs, PARTS, World(workers=2, add=lambda t: sent.append(t.clone())), 0, [])
    expected, waiting = flat(mine) + flat(theirs), iter(sent)
    losses = add_up(mine, PARTS, World(workers=2, add=lambda t: t.add_(next(waiting))), 0, [])
    assert torch.equal(flat(mine), expected)
    assert list(losses.items()) == [("a", 2.0), ("b", 4.0)]
    assert next(waiting, None) is None
    assert mine[-1].grad is None


def sent_by(made):
    """Return what is handed to the sum over workers."""
    sent = []
    add_up(made, PARTS, World(workers=2, add=sent.append), 0, [])
    return sent


def test_no_more_is_copied_at_a_time_than_a_bucket_holds(monkeypatch):
    made = parameters()
    monkeypatch.setattr(gradients, "BUCKET", 25)
    sent = sent_by(made)
    assert [t.numel() for t in sent] == [23, 4, 30, 15]  # 3 + 20, 4, 30, 1 + 12 + 2 losses
    assert sent[2] is made[3].grad
    monkeypatch.setattr(gradients, "BUCKET", 1000)  # the fault: everything in one piece
    assert [t.numel() for t in sent_by(made)] == [72]


@pytest.mark.parametrize("size", [1, 25, 1000])
@pytest.mark.parametrize("place", [*range(len(SHAPES)), "loss"])
def test_what_is_not_finite_is_seen_in_every_bucket(monkeypatch, size, place):
    monkeypatch.setattr(gradients, "BUCKET", size)
    made, parts = parameters(), dict(PARTS)
    if place == "loss":
        parts["a"] = torch.tensor(float("nan"))
    else:
        made[place].grad[(0,) * made[place].grad.ndim] = float("inf")
    with pytest.raises(NotFinite, match=r"^step 5: .*images of this step: x$"):
        add_up(made, parts, World(), 4, ["x"])


def test_what_is_finite_passes_though_its_norm_is_not():
    made = parameters()
    made[0].grad.fill_(1e30)
    assert add_up(made, PARTS, World(), 0, [])["a"] == 1.0
