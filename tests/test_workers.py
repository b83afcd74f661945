"""Two workers against one: the same global batch, so the same loss, gradient and weights (tecoa.md section 11, point 10)."""

import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from robustclip import names as models
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.values import override
from robustclip.data import world
from robustclip.data.plan import Plan
from robustclip.defenses import MMCoA
from robustclip.training.config import Config
from robustclip.training.gradients import Sums
from robustclip.training.learner import Learner
from robustclip.training.pairing import World
from robustclip.training.trainables import Towers

CLASSES, TEMPLATES, STEPS = world.SETS["shapes"].class_names, ("a photo of a {}.",), 5
CONFIG = override(Config(), {"threat.image.eps": 4.0, "optim.batch": 16, "optim.micro_batch": 4, "optim.epochs": 2})
# Of MMCoA every pair of a step counts, whichever worker holds it (mmcoa.md section 10, point 3).
PAIRS = override(CONFIG, {"defense": MMCoA(text=TextAttack(RandomWords())), "trainable": Towers(logit_scale="trainable")})
# name -> config, dtype, what is compared (the first gradient, or the weights after all steps), how closely
CASES = {
    f"{name}, {what}": (config, dtype, what, tolerance)
    for name, config in (("TeCoA", CONFIG), ("MMCoA", PAIRS))
    for dtype, what, tolerance in ((torch.float32, "first", 1e-5), (torch.float64, "weights", 1e-9))
}
LONG, AFTERWARDS = "TeCoA, weights", "TeCoA, nothing sent during the backward pass"


def plan(images: int) -> Plan:
    zeros = np.zeros(images, dtype=np.int64)
    optim = CONFIG.optim
    settings = {"micro_batch": optim.micro_batch, "batch": optim.batch, "epochs": optim.epochs, "seed": 0}
    return Plan(("none",), zeros, np.arange(images) // 16, np.arange(images), zeros, **settings)


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def learn(rank: int, workers: int, dtype: torch.dtype, checkpoint: str, config: Config = CONFIG) -> dict[str, torch.Tensor]:
    """Take every workers-th unit of each step, as a rank's stream has them; return the first loss and gradient, and the last weights."""
    first: list[torch.Tensor] = []
    images, labels = world.images("shapes", 64, 3, "train")
    pixels, walk = images.permute(0, 2, 3, 1).contiguous(), plan(64)
    place = World(rank, workers, lambda tensor: dist.all_reduce(tensor, async_op=True).wait) if workers > 1 else World()
    learner = Learner(config, models.load(checkpoint), CLASSES, TEMPLATES, walk.steps, dtype=dtype, world=place)
    take = learner.optimiser.take

    def kept(step: int) -> float:
        if not first:
            first.append(flat(p.grad for p in learner.parameters if p.grad is not None))
        return take(step)

    learner.optimiser.take = kept  # type: ignore[method-assign]
    for step in range(STEPS):
        for unit in range(rank, walk.units_per_step, workers):
            rows = torch.from_numpy(np.concatenate([rows for _, _, rows in walk.unit(step, unit)]))
            learner.accumulate(pixels[rows], labels[rows], [str(int(row)) for row in rows])
        loss = learner.update()["loss"]
        if not step:
            first.append(torch.tensor([loss], dtype=dtype))
    return {"first": torch.cat(first), "weights": flat(p.detach() for p in learner.parameters)}


def work(rank: int, workers: int, folder: str, checkpoint: str) -> None:
    """Learn in every case as one of some workers; the first one saves what became of it."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    found = {name: learn(rank, workers, dtype, checkpoint, config) for name, (config, dtype, _, _) in CASES.items()}
    if workers > 1:
        with patch.object(Sums, "sending", nullcontext):
            found[AFTERWARDS] = learn(rank, workers, torch.float64, checkpoint)
    if rank == 0:
        torch.save(found, f"{folder}/result-{workers}.pt")
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # the work is saved; what C++ libraries do when an interpreter ends (one aborted, once) is not what is tested


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_item_10_two_workers_equal_one(tmp_path: Path, tiny_checkpoint: str) -> None:
    """First loss and gradient to 1e-5 in fp32 (relative to the largest entry), five steps to 1e-9 in float64, for losses of both kinds."""
    work(0, 1, str(tmp_path), tiny_checkpoint)
    mp.spawn(work, (2, str(tmp_path), tiny_checkpoint), nprocs=2)
    alone, shared = (torch.load(tmp_path / f"result-{n}.pt", weights_only=True) for n in (1, 2))
    for name, (_, _, what, tolerance) in CASES.items():
        one, two = alone[name][what], shared[name][what]
        assert float((one - two).abs().max() / one.abs().max()) <= tolerance, name
        assert float(one.abs().max()) > 0, name
    overlapped, plain = (shared[name]["weights"] for name in (LONG, AFTERWARDS))
    assert float((overlapped - plain).abs().max() / plain.abs().max()) <= 1e-9


def test_the_comparison_sees_a_wrong_share(tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: a plan of another seed gives another gradient, so the equality above is no accident."""
    one = learn(0, 1, torch.float32, tiny_checkpoint)["first"]
    original = plan(64)
    monkeypatch.setattr(sys.modules[__name__], "plan", lambda images: replace(original, seed=1))
    other = learn(0, 1, torch.float32, tiny_checkpoint)["first"]
    assert float((one - other).abs().max() / one.abs().max()) > 1e-3
