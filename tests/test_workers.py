"""Two workers against one: the same global batch, so the same loss, gradient and weights (tecoa.md section 11, point 10)."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from robustclip import model as models
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.config import Config, override
from robustclip.data import world
from robustclip.data.plan import Plan
from robustclip.defenses import MMCoA
from robustclip.learner import Learner
from robustclip.pairing import World
from robustclip.trainables import Towers

CLASSES, TEMPLATES, STEPS = world.SETS["shapes"].class_names, ("a photo of a {}.",), 5
CONFIG = override(Config(), {"threat.image.eps": 4.0, "optim.batch": 16, "optim.micro_batch": 4, "optim.epochs": 2})
# Of MMCoA every pair of a step counts, whichever worker holds it (mmcoa.md section 10, point 3).
PAIRS = override(CONFIG, {"defense": MMCoA(text=TextAttack(RandomWords())), "trainable": Towers(logit_scale="trainable")})


def plan(images: int) -> Plan:
    zeros = np.zeros(images, dtype=np.int64)
    optim = CONFIG.optim
    settings = {"micro_batch": optim.micro_batch, "batch": optim.batch, "epochs": optim.epochs, "seed": 0}
    return Plan(("none",), zeros, np.arange(images) // 16, np.arange(images), zeros, **settings)


def work(rank: int, world_size: int, folder: str, dtype: torch.dtype, checkpoint: str, config: Config = CONFIG) -> None:
    """Take every world_size-th unit of each step, as streaming_split deals them, and save the first flat gradient and the last weights."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    sums: list[torch.Tensor] = []
    first = torch.zeros(())

    def add_up(flat: torch.Tensor) -> None:
        if world_size > 1:
            dist.all_reduce(flat)
        sums.append(flat.clone())

    images, labels = world.images("shapes", 64, 3, "train")
    pixels, walk = images.permute(0, 2, 3, 1).contiguous(), plan(64)
    place = World(rank, world_size, add_up)
    learner = Learner(config, models.load(checkpoint), CLASSES, TEMPLATES, walk.steps, dtype=dtype, world=place)
    for step in range(STEPS):
        for unit in range(rank, walk.units_per_step, world_size):
            rows = torch.from_numpy(np.concatenate([rows for _, _, rows in walk.unit(step, unit)]))
            learner.accumulate(pixels[rows], labels[rows], [str(int(row)) for row in rows])
        sums.clear()
        learner.update()
        first = first if step else sums[-1]
    if rank == 0:
        weights = torch.cat([p.detach().flatten() for p in learner.parameters])
        torch.save({"first": first, "weights": weights}, f"{folder}/result-{world_size}.pt")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # the work is saved; what C++ libraries do when an interpreter ends (one aborted, once) is not what is tested


@pytest.mark.parametrize("config", [CONFIG, PAIRS], ids=["TeCoA", "MMCoA"])
@pytest.mark.parametrize(("dtype", "what", "tolerance"), [(torch.float32, "first", 1e-5), (torch.float64, "weights", 1e-9)])
def test_item_10_two_workers_equal_one(
    tmp_path: Path, tiny_checkpoint: str, dtype: torch.dtype, what: str, tolerance: float, config: Config
) -> None:
    """First loss and gradient to 1e-5 in fp32 (relative to the largest entry), five steps to 1e-9 in float64."""
    work(0, 1, str(tmp_path), dtype, tiny_checkpoint, config)
    mp.spawn(work, (2, str(tmp_path), dtype, tiny_checkpoint, config), nprocs=2)
    one, two = (torch.load(tmp_path / f"result-{n}.pt", weights_only=True)[what] for n in (1, 2))
    assert float((one - two).abs().max() / one.abs().max()) <= tolerance
    assert float(one.abs().max()) > 0


def test_the_comparison_sees_a_wrong_share(tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: a plan of another seed gives another gradient, so the equality above is no accident."""
    work(0, 1, str(tmp_path), torch.float32, tiny_checkpoint)
    one = torch.load(tmp_path / "result-1.pt", weights_only=True)["first"]
    original = plan(64)
    monkeypatch.setattr(sys.modules[__name__], "plan", lambda images: replace(original, seed=1))
    work(0, 1, str(tmp_path), torch.float32, tiny_checkpoint)
    other = torch.load(tmp_path / "result-1.pt", weights_only=True)["first"]
    assert float((one - other).abs().max() / one.abs().max()) > 1e-3
