"""TeCoA's "How to know it is right" (tecoa.md, section 11): the items not tested beside their own subject.

Items 1, 2 and 9 are in test_defenses.py (9 also in test_contrastive.py, interpolation in test_combined.py), 3 to 7 in test_pgd.py (the
closed form of 3 in test_attack_strength.py), 7 also in test_prompts.py, 8 and 10 in test_learner.py, 10 also in test_workers.py, 11 also
in test_classes.py.
"""

import numpy as np
import pyarrow as pa
import pytest
import torch
from parts import NAMES, config, learner_of, pixels, step
from probes import make_set
from toys import Linear, ids_of, middle

from robustclip.attacks import APGD
from robustclip.attacks.pgd import move, random_start
from robustclip.base.threat import Ball
from robustclip.base.values import override
from robustclip.data.index import Index
from robustclip.data.plan import Plan, select
from robustclip.defenses import Batch, TeCoA
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.protocols import Protocol, Resolved
from robustclip.models.dress import InputFilter, LinearHead, PixelPrompt, TokenPrompt
from robustclip.training.config import Config, InnerAttack


@pytest.mark.parametrize(
    "trainable",
    [TokenPrompt(3), TokenPrompt(2, deep=True), PixelPrompt("pad", 3), PixelPrompt("random patch", 5), InputFilter(3), LinearHead()],
    ids=str,
)
def test_item_7_frozen_clip_is_bit_identical_after_a_step(tiny_model, pictures, trainable):
    x, y, ids = pictures(8)
    before = {name: value.clone() for name, value in tiny_model.clip.state_dict().items()}
    learner = learner_of(tiny_model, config(TeCoA(), trainable, batch=8))
    step(learner, (pixels(x), y, ids))
    learner.finish()
    assert all(torch.equal(value, before[name]) for name, value in learner.model.clip.state_dict().items())
    assert all(p.grad is None for p in learner.model.clip.parameters())


def test_item_8_a_step_of_a_quarter_of_a_255th_is_taken_as_it_is(tiny_model, pictures):
    """alpha = 0.25/255 at eps = 1/255: one step moves each pixel by exactly that from its start, unless the ball or [0,1] stops it."""
    x, y, ids = pictures(8)
    chosen = override(Config(), {"threat.image.eps": 1, "attack.alpha": 0.25, "attack.steps": 1})
    assert chosen.attack == InnerAttack(1, 0.25)
    learner, ball = learner_of(tiny_model, chosen), Ball("Linf", 1.0)
    start = move(x, random_start(ball, x, ids, 0, "train", 0), ball)
    moved = (learner.attacked(Batch(x, y, ids)).images - start).abs()
    free = ((start - x).abs() < 0.75 / 255 - 1e-6) & (start > 0.5 / 255) & (start < 1 - 0.5 / 255)
    assert free.float().mean() > 0.5
    torch.testing.assert_close(moved[free], torch.full_like(moved[free], 0.25 / 255), atol=1e-6, rtol=0)
    assert moved.max() < 0.25 / 255 + 1e-6


@pytest.mark.parametrize("k", [1, 5])
def test_item_8_the_sampler_takes_exactly_k_a_class_for_any_number_of_workers(k):
    """12 images a class of 4: the same k of each whatever the order they are read in, and 1, 2 or 4 workers walk them once an epoch."""
    at = np.arange(48, dtype=np.int32)
    names, ids = tuple("abcd"), pa.array([f"set/train/{i}" for i in at])

    def index(order):
        return Index(
            ("file",), at[order] // 48, at[order] // 48, at[order], at[order].astype(np.int64) % 4, ids.take(pa.array(order)), names
        )

    orders = (at, np.random.default_rng(0).permutation(at))
    chosen = [select(index(order), per_class=k, held_out=4)[0] for order in orders]
    found = [set(index(order).ids(rows)) for order, rows in zip(orders, chosen)]
    assert found[0] == found[1]
    assert np.bincount(index(at).label[chosen[0]], minlength=4).tolist() == [k] * 4
    plan = Plan.of(index(at), chosen[0], micro_batch=1, batch=4, epochs=1, seed=0)
    for workers in (1, 2, 4):
        plan.check_world(workers)
        walked = [
            id_
            for rank in range(workers)
            for step in range(plan.steps)
            for unit in range(rank, plan.units_per_step, workers)
            for _, _, rows in plan.unit(step, unit)
            for id_ in ids.take(pa.array(rows)).to_pylist()
        ]
        assert sorted(walked) == sorted(found[0])


@pytest.mark.parametrize(("classes", "dropped"), [(2, {"apgd-dlr-5": None}), (3, {})])
def test_item_11_on_a_binary_set_dlr_is_dropped_and_reported(classes, dropped):
    """No row says dlr, the protocol says why, and nothing falls in its place; with a third class it runs."""
    classifier, x, ids = Linear(classes), middle(16), ids_of(16)
    y = classifier(x).argmax(1)
    protocol = Protocol("test", ("toy",), (APGD(5), APGD(5, loss="dlr")), (0.2,), micro_batch=8, independent=True)
    rows = run_cascade(classifier, x, y, ids, protocol)
    assert {row["attack"] for row in rows} == {"clean", "apgd-ce-5", "apgd-dlr-5"} - set(dropped)
    assert len(rows) == 16 * (3 - len(dropped))
    resolved = Resolved(protocol, {"toy": make_set("toy", y.numpy(), ids, names=tuple(NAMES[:classes]))})
    assert resolved.describe()["sets"]["toy"]["reduced"] == dropped
