"""The benchmark for a GPU runs on a CPU as far as there is anything for it: its rows, and what does not fit."""

from dataclasses import replace

import torch
from gpu import MODES, PRECISIONS, changed, fitting, steps, table

from robustclip.training.config import InnerAttack
from robustclip.training.recipes import PUBLISHED

CONFIG = replace(PUBLISHED["tecoa-b32"].config, attack=InnerAttack(1, 1.0))


def test_every_precision_has_a_row_with_its_figures_or_with_what_is_missing(tiny_model, monkeypatch):
    monkeypatch.setattr("gpu.MODES", ("off", "reduce-overhead"))
    rows = dict(zip(((p, m) for p in PRECISIONS for m in ("off", "reduce-overhead")), table(tiny_model, CONFIG, 4, 3, 2, "cpu")))
    assert "images/s   x  1.00" in rows["fp32", "off"]
    assert "images/s   x " in rows["bf16", "off"]
    assert "not here: attack.precision is tf32" in rows["tf32", "off"]
    assert all("not here: attack.compile is 'reduce-overhead'" in rows[p, "reduce-overhead"] for p in ("fp32", "bf16"))


def test_a_row_is_of_the_run_it_names():
    found = [changed(CONFIG, p, m, 16) for p in PRECISIONS for m in MODES]
    assert {(each.attack.precision, each.optim.precision, each.attack.compile) for each in found} == {
        (p, p, m) for p in PRECISIONS for m in MODES
    }
    assert {(each.optim.batch, each.optim.micro_batch, each.attack.steps) for each in found} == {(16, 16, 1)}


def test_the_first_step_and_the_others_are_timed(tiny_model):
    taken, peak = steps(tiny_model, changed(CONFIG, "fp32", "off", 4), 3, 2, "cpu")
    assert len(taken) == 3
    assert min(taken) > 0
    assert peak == 0.0


def test_a_micro_batch_grows_until_it_does_not_fit(tiny_model, monkeypatch):
    asked = []

    def step(model, config, classes, rounds, device):
        asked.append(config.optim.micro_batch)
        if asked[-1] > 20:
            raise torch.OutOfMemoryError
        return [1.0, 0.5], 3.0

    monkeypatch.setattr("gpu.steps", step)
    rows = list(fitting(tiny_model, CONFIG, "bf16", True, "cpu"))
    assert asked == [8, 16, 32]
    assert "16 images a micro-batch      32.0 images/s    3.00 GiB" in rows[1]
    assert rows[2].endswith("32 images a micro-batch do not fit")
