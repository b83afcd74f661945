"""The gradients of a step are added up in buckets, some during its backward pass: the same sums, and nothing passes that is not finite."""

import pytest
import torch
from summing import heard, summed
from torch import nn

from robustclip.training import gradients
from robustclip.training.gradients import NotFinite, Sums
from robustclip.training.pairing import World

SHAPES = [(6, 2), (1,), (30,), (2, 2), (4, 5), (3,)]
PARTS = {"b": torch.tensor(2.0), "a": torch.tensor([1.0])}


def parameters(seed=0):
    """Return parameters with gradients, one of them not contiguous, and one without."""
    g = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((2,), *SHAPES)]
    for p in made[1:]:
        p.grad = torch.randn(p.shape, generator=g)
    made[-2].grad = torch.randn(5, 4, generator=g).T
    return made


def flat(made):
    return torch.cat([p.grad.flatten() for p in made if p.grad is not None])


def add_up(made, world, step=0, ids=(), parts=PARTS):
    return Sums(made, world).finish(parts, step, ids)


@pytest.mark.parametrize("size", [1, 8, 25, 1 << 23])
def test_buckets_of_any_size_give_the_sums_of_one_piece(monkeypatch, size):
    monkeypatch.setattr(gradients, "BUCKET", size)
    mine, theirs, sent = parameters(0), parameters(1), []
    add_up(theirs, heard(sent))
    expected, waiting = flat(mine) + flat(theirs), iter(sent)
    losses = add_up(mine, summed(lambda t: t.add_(next(waiting))))
    assert torch.equal(flat(mine), expected)
    assert list(losses.items()) == [("a", 2.0), ("b", 4.0)]
    assert next(waiting, None) is None
    assert mine[0].grad is None


def on_their_way(monkeypatch, at_once):
    """Return how many buckets were on their way when each was sent."""
    counts, begun = [], []

    def begin(tensor):
        begun.append(tensor)
        counts.append(len(begun))
        return begun.pop

    monkeypatch.setattr(gradients, "BUCKET", 1)
    monkeypatch.setattr(gradients, "AT_ONCE", at_once)
    add_up(parameters(), World(workers=2, begin=begin))
    return counts


def test_no_more_is_copied_than_a_few_buckets(monkeypatch):
    sent, made = [], parameters()
    monkeypatch.setattr(gradients, "BUCKET", 25)
    add_up(made, summed(sent.append))
    assert [t.numel() for t in sent] == [23, 4, 30, 13, 2]  # 3 + 20, 4, 30, 1 + 12, and the losses
    assert sent[2] is made[3].grad
    assert on_their_way(monkeypatch, 2) == [1, 2, 2, 2, 2, 2, 2]
    assert max(on_their_way(monkeypatch, 100)) == 7  # the fault: everything at once


@pytest.mark.parametrize("size", [1, 25, 1000])
@pytest.mark.parametrize("place", [*range(1, 1 + len(SHAPES)), "loss"])
def test_what_is_not_finite_is_seen_in_every_bucket(monkeypatch, size, place):
    monkeypatch.setattr(gradients, "BUCKET", size)
    made, parts = parameters(), dict(PARTS)
    if place == "loss":
        parts["a"] = torch.tensor(float("nan"))
    else:
        made[place].grad[(0,) * made[place].grad.ndim] = float("inf")
    with pytest.raises(NotFinite, match=r"^step 5: .*images of this step: x$"):
        add_up(made, World(), 4, ["x"], parts)


def test_what_is_finite_passes_though_its_norm_is_not():
    made = parameters()
    made[1].grad.fill_(1e30)
    assert add_up(made, World())["a"] == 1.0


# --- during the backward pass ---------------------------------------------------------------------------------------------------------


def layers():
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 4, generator=g)) for _ in range(3)]


def loss_of(made, order=(0, 1, 2)):
    x = torch.ones(4)
    for i in order:
        x = (made[i] @ x).tanh()
    return x.sum()


def test_a_bucket_that_is_whole_is_sent_before_the_others_are_made(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET", 16)
    made, seen = layers(), []
    sums = Sums(made, summed(lambda t: seen.append([p.grad is not None for p in made])))
    with sums.sending():
        loss_of(made).backward()
    assert seen == [[False, False, True], [False, True, True], [True, True, True]]
    assert not sums.left
    sums.finish({"a": torch.tensor(1.0)}, 0, [])
    assert len(seen) == 4  # the losses


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_all_workers_send_the_same_buckets_in_one_order_whatever_comes_first(monkeypatch, order):
    monkeypatch.setattr(gradients, "BUCKET", 16)
    made, plain, sent, expected = layers(), layers(), [], []
    sums = Sums(made, heard(sent))
    loss_of(made, order).backward()  # an earlier micro-batch, which sends nothing
    with sums.sending():
        loss_of(made, order).backward()
    sums.finish({"a": torch.tensor(1.0)}, 0, [])
    for _ in range(2):
        loss_of(plain, order).backward()
    add_up(plain, heard(expected), parts={"a": torch.tensor(1.0)})
    assert all(torch.equal(a, b) for a, b in zip(sent, expected, strict=True))
    assert all(torch.equal(a, b.grad) for a, b in zip(sent, plain[::-1], strict=False))


def test_what_gets_no_gradient_in_the_last_backward_pass_waits_for_the_end(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET", 16)
    made, sent = layers(), []
    made[1].requires_grad_(False)
    sums = Sums(made, heard(sent))
    with sums.sending():
        loss_of(made).backward()
    assert len(sent) == 1
    sums.finish({"a": torch.tensor(1.0)}, 0, [])
    assert [t.numel() for t in sent] == [16, 16, 1]


def test_one_worker_alone_has_no_hooks():
    made = layers()
    with Sums(made, World()).sending():
        assert not any(p._post_accumulate_grad_hooks for p in made)
