"""A few numbers that learn inside frozen weights, put there by torch's parametrizations and baked in at the end.

peft wraps modules, and half of a ViT's attention weights (`in_proj_weight` of nn.MultiheadAttention) belong to no module it could wrap.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W -> W + scale B A with A [rank,in] ~ N(0, 1/in) and B [out,rank] zero at first (Hu et al. 2022, arXiv:2106.09685, section 4.1)."""

    def __init__(self, weight: Tensor, rank: int, scale: float, g: torch.Generator):
        super().__init__()
        rows, columns = weight.shape
        self.scale = scale
        self.down = nn.Parameter((torch.randn(rank, columns, generator=g) / math.sqrt(columns)).to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up @ self.down


class Tail(nn.Module):
    """The last `count` entries of a weight learn, the others stay."""

    def __init__(self, weight: Tensor, count: int):
        super().__init__()
        self.entries = nn.Parameter(weight.detach().flatten()[-count:].clone())

    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([weight.flatten()[: -len(self.entries)], self.entries]).view_as(weight)


def put_inside(module: nn.Module, name: str, change: nn.Module) -> list[nn.Parameter]:
    """Let `change` act on the frozen weight `name` of a module from now on; return the parameters that learn."""
    parametrize.register_parametrization(module, name, change)
    return list(change.parameters())


def bake(module: nn.Module) -> None:
    """Turn every changed weight inside a module into an ordinary one of the same value, frozen."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
                getattr(part, name).requires_grad_(False)
