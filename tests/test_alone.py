"""Fine-tuning in one process without Ray: the weights, the reports and the card are those of Ray Train, bit for bit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.models.model import Model
from robustclip.training.alone import finetune_alone
from robustclip.training.config import Config
from robustclip.training.job import Job
from robustclip.training.recipes import RECIPES
from robustclip.training.trainables import Towers


@pytest.fixture
def smoke(tiny_checkpoint: str) -> Config:
    return override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"})


def test_alone_and_on_ray_a_config_gives_the_same_model(trained: tuple[Job, dict[str, Any]], tmp_path: Path) -> None:
    (job, result), told = trained, []
    smoke, given = job.config, models.load(job.config.model)
    before = given.sha256
    torch.set_num_threads(2)
    threads: set[int] = set()
    made, history = finetune_alone(given, smoke, str(tmp_path), lambda row: (told.append(row), threads.add(torch.get_num_threads())))
    assert (threads, torch.get_num_threads()) == ({1}, 2)  # it computes with one, as a worker does, and leaves this process its own
    torch.set_num_threads(1)
    saved = models.load(result["checkpoint"])
    assert made.sha256 == saved.sha256 == result["sha256"] != before == given.sha256
    assert history == told == result["history"]
    assert {**made.card, "run": job.key} == saved.card
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = [model.classifier(job.card.class_names, job.card.templates)(images) for model in (made, saved)]
    assert torch.equal(*logits)
    assert not logits[0].requires_grad
    other, _ = finetune_alone(given, override(smoke, {"seed": 1}), str(tmp_path))
    assert other.sha256 != made.sha256


def test_a_model_that_no_name_stands_for_is_known_by_its_weights(tmp_path: Path, tiny_model: Model, smoke: Config) -> None:
    short = override(smoke, {"optim.epochs": 1})
    trained, _ = finetune_alone(tiny_model, short, str(tmp_path))
    assert trained.card["base"] == {"name": tiny_model.name, "sha256": tiny_model.sha256}
    assert trained.card["config"]["model"] == tiny_model.name
    named = models.load(smoke.model)
    first, _ = finetune_alone(named, short, str(tmp_path))
    again, _ = finetune_alone(first, short, str(tmp_path))
    assert first.card["base"] == {"name": smoke.model, "sha256": models.identity(smoke.model)}
    assert again.card["base"] == {"name": smoke.model, "sha256": first.sha256}  # the folder of that name holds other weights


def test_what_cannot_work_is_refused(tmp_path: Path, tiny_model: Model, smoke: Config) -> None:
    with pytest.raises(UserError, match="did you mean shapes"):
        finetune_alone(tiny_model, override(smoke, {"data.name": "shapse"}), str(tmp_path))
    with pytest.raises(UserError, match="nothing to train on"):
        finetune_alone(tiny_model, override(smoke, {"data.held_out": 128}), str(tmp_path))
    with pytest.raises(UserError, match="fixed texts"):
        finetune_alone(tiny_model, override(smoke, {"trainable": Towers()}), str(tmp_path))


def test_it_needs_no_ray() -> None:
    code = "import sys; sys.modules['ray'] = None; import robustclip.training.alone, robustclip.training.fit"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
