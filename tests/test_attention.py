"""Attention multiplies its input as one matrix, with weights that learn or not, and says what it said before."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustclip.models.attention import WIDE, project_at_once, tokens_first


class Products(TorchDispatchMode):
    """Keeps the names of what is computed."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def attention(width=WIDE, batch_first=True):
    torch.manual_seed(0)
    return nn.MultiheadAttention(width, 4, batch_first=batch_first).eval().requires_grad_(False)


def asked(module, x):
    """Return what an attention says of images, the gradient, and the names of what was computed for both."""
    x = x.clone().requires_grad_()
    with Products() as products:
        out = module(x, x, x, need_weights=False)[0]
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
    return out, gradient, products.names


@pytest.mark.parametrize("learns", [False, True])
def test_it_is_the_same_in_one_product(learns):
    plain = attention().requires_grad_(learns)
    ours, x = copy.deepcopy(plain), torch.randn(3, 5, WIDE)
    project_at_once(nn.Sequential(ours))
    before, after = asked(plain, x), asked(ours, x)
    torch.testing.assert_close(after[:2], before[:2])
    assert "bmm" not in after[2]
    assert ("bmm" in before[2]) == (not learns), "torch multiplies otherwise now: is this still needed?"


def test_who_asks_twice_has_it_once_and_copies_have_it_too():
    module = attention()
    for _ in range(2):
        project_at_once(module)
    assert [*copy.deepcopy(module)._forward_pre_hooks.values()] == [tokens_first]


def test_narrow_attention_and_what_is_no_self_attention_stay_as_they_are():
    narrow = attention(WIDE // 2)
    project_at_once(narrow)
    assert not narrow._forward_pre_hooks
    x, other = torch.randn(2, 3, 5, WIDE)
    assert tokens_first(attention(), (x, other, other)) is None
    assert tokens_first(attention(batch_first=False), (x, x, x)) is None
