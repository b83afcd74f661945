"""What a run will take: passes are counted as attacks make them, seconds are of its own micro-batches, and --plan does nothing else."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustclip import __main__
from robustclip import names as models
from robustclip.attacks import APGD, APGDT, FABT, PGD, Square
from robustclip.attacks.catalogue import named
from robustclip.attacks.levels import Aimed
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.multimodal import CoAttack, Text
from robustclip.attacks.universal import Universal
from robustclip.base.forecast import Forecast, amount, duration, left
from robustclip.base.threat import Ball
from robustclip.base.values import override
from robustclip.evaluation import forecast as evaluation
from robustclip.evaluation import protocols
from robustclip.runtime import cli, cluster
from robustclip.sweeps import tuning
from robustclip.training import forecast as training
from robustclip.training.job import Job, prepare
from robustclip.training.recipes import RECIPES


@pytest.fixture
def job(tiny_checkpoint: str, tmp_path: Path) -> Job:
    return prepare(override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"}), str(tmp_path / "out"))


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the place of a cluster of this machine."""
    monkeypatch.setattr(cluster, "connect", lambda: None)
    for module in (cluster, tuning):
        monkeypatch.setattr(module, "total", lambda: (2.0, 0.0))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])


class Counting(nn.Module):
    """A classifier that counts what an attack asks of it."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier, self.forwards, self.backwards = classifier, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits = self.classifier(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: setattr(self, "backwards", self.backwards + len(gradient)))
        return logits


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (PGD(5), 6, 5),
        (PGD(40), 41, 40),
        (PGD(5, restarts=3), 18, 15),
        (APGD(5, restarts=2), 12, 10),
        (APGDT(4, targets=3), 16, 12),
        (*named(["di-fgsm-10"]), 22, 10),
        (Square(7), 8, 0),
        (Aimed("A5", PGD(5), draws=4), 24, 20),
        (Aimed("A0", PGD(5)), 6, 5),
        (Text(TEXTS["clip_knn"]), 1, 0),
        (CoAttack(TEXTS["clip_knn"], steps=20), 21, 20),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_passes_of_an_attack_are_counted(attack: Any, forwards: int, backwards: int) -> None:
    assert evaluation.passes(attack, 4, Ball("Linf", 1.0)) == (forwards, backwards)


@pytest.mark.parametrize("attack", [PGD(5), APGD(5), APGDT(4, targets=3), FABT(4, targets=3), Square(7), *named(["ti-di-mi-fgsm-10"])])
def test_an_attack_that_breaks_nothing_asks_a_real_model_as_often(attack: Any, tiny_classifier: nn.Module, pictures: Callable) -> None:
    images, _, ids = pictures(3)
    counting, labels = Counting(tiny_classifier), tiny_classifier(images).argmax(1)
    attack(counting, images, labels, ids, Ball("Linf", 1e-4), 0, 3)
    found = evaluation.passes(attack, 4, Ball("Linf", 1e-4))
    assert (counting.forwards, counting.backwards) == (3 * found[0], 3 * found[1])


def test_what_is_undefined_on_few_classes_costs_nothing(tmp_path: Path) -> None:
    """Shapes has more than two classes; a set of two meets the other attack alone."""
    protocol = replace(protocols.named("smoke"), attacks=(PGD(2), APGD(3, loss="dlr")))
    resolved = protocols.resolve(protocol, str(tmp_path))
    few = SimpleNamespace(protocol=protocol, classes=dict.fromkeys(resolved.classes, 2))
    cell, *_ = resolved.cells("tiny-vit8", "")
    many, two = evaluation.Work(), evaluation.Work()
    many.add(cell, resolved, evaluation.Cost(1.0, 1.0))
    two.add(cell, few, evaluation.Cost(1.0, 1.0))  # type: ignore[arg-type]
    assert (many.shown, two.shown) == (16 * (1 + 4 + 5), 16 * (1 + 4))


def test_an_evaluation_takes_its_passes_times_their_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets of 16 images: clean, PGD-2 and APGD-3 at one eps, each looked at afterwards."""
    resolved = protocols.resolve(protocols.named("smoke"), str(tmp_path))
    monkeypatch.setattr(evaluation, "measure", lambda name, resolved: evaluation.Cost(1.0, 3.0, 0.5))
    found = evaluation.forecast(["tiny-vit8"], resolved, str(tmp_path), 2, 0.0)
    first, second = 2 * 1 + 2 * 3, 2 * 1 + 3 * 3
    prompts = sum(len(each.card.class_names) * len(each.templates) for each in resolved.sets.values())
    assert found.seconds == (32 * (1 + first + second) + prompts * 0.5) / 2
    assert found.least == (32 * (1 + first) + prompts * 0.5) / 2
    assert f"at most 320 images through a model, and {prompts} prompts" in str(found)
    assert f"a cell      at most {duration(16 * (1 + first + second))}\n" in str(found)
    assert "32 to attack, under 1 model, of 2 sets; 0 cells found finished" in str(found)
    assert found.gpus == 0
    assert "GPU-hours" not in str(found)


def test_a_pass_is_measured_on_the_model_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = protocols.resolve(protocols.named("smoke"), str(tmp_path))
    threads: list[int] = []
    monkeypatch.setattr(evaluation, "timed", lambda work: (work(), threads.append(torch.get_num_threads()), 8.0)[-1])
    assert evaluation.measure("tiny-vit8", resolved) == evaluation.Cost(1.0, 1.0, 8.0 / evaluation.READ)
    assert set(threads) == {1}
    assert evaluation.measure("ensemble:tiny-vit8,ttc:tiny-vit8", resolved).text == 2 * 8.0 / evaluation.READ


def test_each_evaluator_that_meets_a_set_reads_its_prompts(tmp_path: Path) -> None:
    resolved, work = protocols.resolve(protocols.named("smoke"), str(tmp_path)), evaluation.Work()
    work.read("shapes", resolved, evaluation.Cost(0.0, 0.0, 2.0), 3)
    prompts = 3 * len(resolved.sets["shapes"].card.class_names) * len(resolved.sets["shapes"].templates)
    assert (work.prompts, work.most, work.least) == (prompts, 2.0 * prompts, 2.0 * prompts)


def test_of_a_thousand_classes_few_are_read_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, met = protocols.resolve(protocols.named("smoke"), str(tmp_path)), []
    on_device = evaluation.on_device
    monkeypatch.setattr(evaluation, "on_device", lambda *given: met.append(on_device(*given)) or met[-1])
    evaluation.measure("tiny-vit8", resolved)
    assert len(met[0][0].class_names) == evaluation.SHOWN < len(resolved.sets["shapes"].card.class_names)


def test_a_training_takes_its_steps_and_validations(job: Job) -> None:
    """64 images, twice, in batches of 16 of two micro-batches; 16 images validated after each epoch."""
    found = training.Measured(unit=2.0, step=0.5, image=0.25, forwards=3, backwards=2, memory=2e9)
    one = training.forecast(job, cluster.Share(1, 1.0, 0.0), found)
    assert one.seconds == 8 * (2 * 2.0 + 0.5) + 2 * 16 * 0.25
    two = training.forecast(job, cluster.Share(2, 1.0, 1.0), found)
    assert two.seconds == 8 * (2.0 + 0.5) + 2 * 16 * 0.25
    assert "GPU-hours" in str(two)
    assert "3 forward and 2 backward" in str(one)
    assert "2 GB a worker" in str(one)
    assert "on 1 worker with 1 thread" in str(one)


def test_micro_batches_of_the_run_itself_are_measured(job: Job) -> None:
    before = models.load(job.config.model).sha256
    found = training.measure(job, cluster.Share(1, 1.0, 0.0))
    # TeCoA with one step of PGD: the attack's pass and the loss's, both with their gradient.
    assert (found.forwards, found.backwards) == (2, 2)
    assert min(found.unit, found.step, found.image, found.memory) > 0
    assert found.weights == 4 * sum(tensor.numel() for tensor in models.load(job.config.model).clip.state_dict().values())
    assert models.load(job.config.model).sha256 == before


def test_a_loss_over_pairs_is_measured_with_its_second_pass(job: Job, tiny_checkpoint: str, tmp_path: Path) -> None:
    config = override(RECIPES["demo-mmcoa"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 64, "data.held_out": 16})
    config = override(config, {"data.rendered": 128, "optim.batch": 16, "optim.micro_batch": 8})
    found = training.measure(prepare(config, str(tmp_path / "out")), cluster.Share(1, 1.0, 0.0))
    assert found.step == 0
    assert found.forwards > found.backwards >= 2


def test_what_models_that_are_not_there_yet_learn_is_in_their_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models, a cell each: 16 images clean and under a perturbation, learned on 12 others twice."""
    monkeypatch.setattr(evaluation, "measure", lambda name, resolved: evaluation.Cost(1.0, 2.0))
    learned = Universal(2, images=12)
    protocol = replace(protocols.named("smoke"), sets=("shapes",), attacks=(learned,))
    found = evaluation.of_later("tiny-vit8", 3, protocols.resolve(protocol, str(tmp_path)), 2, 1, 0.5)
    assert found.seconds == 3 * (16 * (1 + 3) + 2 * 12 * 2.0) / 2
    assert found.gpus == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "tiny-vit8", "--protocol", "smoke"],
        ["train", "smoke", "--data.name", "shapes"],
        ["sweep", "epsilon", "--recipe", "smoke", "--protocol", "smoke", "--data.name", "shapes", "--concurrent", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_plan_is_told_and_nothing_is_done(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], two_cpus: None
) -> None:
    monkeypatch.setattr("sys.argv", ["robustclip", *words, "--plan", "--out", str(tmp_path)])
    monkeypatch.setattr(cli, "say_on_terminal", lambda: None)
    __main__.main()
    assert "  time        about " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "protocols"}


def test_what_takes_long_says_so_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "robustclip"):
        cli.tell_if_long(Forecast("training", {}, 599.0))
        assert not caplog.text
        cli.tell_if_long(Forecast("training", {"steps": "12"}, 7200.0, gpus=4))
    assert "this will take long" in caplog.text
    assert "about 2 h 00 min" in caplog.text
    assert "GPU-hours   8" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.4, "3 s"), (89, "89 s"), (91, "2 min"), (5360, "89 min"), (5401, "1 h 30 min"), (2e5, "2 d 8 h")]
)
def test_durations_are_read_at_a_glance(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("done", "said"), [(0, ""), (1, ", about 8 min left"), (3, ", about 53 s left"), (4, "")])
def test_what_is_left_goes_as_fast_as_what_is_done(done: int, said: str) -> None:
    assert left(done, 4, 160.0) == said


@pytest.mark.parametrize(("n", "said"), [(0, "0 B"), (999, "999 B"), (999_700, "1 MB"), (3.64e6, "3.64 MB"), (2e12, "2 TB")])
def test_amounts_are_read_at_a_glance(n: float, said: str) -> None:
    assert amount(n) == said
