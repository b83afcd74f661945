"""The learner: every defence and every trainable steps, resumes bit for bit, and adds micro-batches up to one batch."""

import io
import math
import re

import pytest
import torch
from parts import STEPS, TOWER, config, learned, learner_of, name, pairs, pixels, step
from summing import heard, summed

from robustclip.base.errors import UserError
from robustclip.base.threat import ThreatModel
from robustclip.data.reading import to_images
from robustclip.defenses import Batch, TeCoA
from robustclip.training.config import Config, InnerAttack, Optim
from robustclip.training.optimiser import lr_at

# What of a tiny ViT each trainable may change; the others change nothing of it.
MAY_CHANGE = {
    "VisualTower": r"visual\..*",
    "LastBlocks": r"visual\.(transformer\.resblocks\.1\..*|ln_post\..*|proj)",
    "FirstBlocks": r"visual\.(class_embedding|positional_embedding|conv1\..*|ln_pre\..*|transformer\.resblocks\.0\..*)",
    "NormsAndBiases": r"visual\.(.*ln_.*|.*bias)",
    "SameSize": r"visual\.(transformer\.resblocks\.1\.mlp\.c_proj\..*|ln_post\..*)",
    "LoRA": r"visual\.transformer\.resblocks\..*weight",
}


@pytest.fixture
def batch(pictures):
    """Return 16 images as 8-bit pixels [16,16,16,3], labels and ids."""
    x, y, ids = pictures(16)
    return pixels(x), y, ids


def tecoa(**changes):
    return config(TeCoA(), TOWER, batch=16, **changes)


# --- every defence, every trainable ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=pairs(), ids=name)
def pair(request):
    return request.param


def test_a_step_reports_its_parts_and_its_rate_and_moves_only_what_learns(pair, tiny_model, batch):
    before = {name: value.clone() for name, value in tiny_model.clip.state_dict().items()}
    learner = learner_of(tiny_model, config(*pair, batch=16), steps=4)
    start, head = learned(learner), learner.head_steps
    reports = [step(learner, batch) for _ in range(head + 1)]
    rates = [pair[0].head_lr] * head + [lr_at(t, learner.config.optim, 4 - head) for t in range(1)]
    for report, rate in zip(reports, rates):
        parts = [value for name, value in report.items() if name.startswith("loss/")]
        assert all(math.isfinite(value) for value in report.values())
        assert (report["loss"], report["lr"]) == (pytest.approx(sum(parts)), rate)
        assert parts
    assert not torch.equal(learned(learner), start)
    learner.finish()
    after = learner.model.clip.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    wanted = MAY_CHANGE.get(type(pair[1]).__name__)
    assert bool(changed) == bool(wanted)
    assert all(re.fullmatch(wanted, name) for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.clip.state_dict().items())
    assert not any(p.requires_grad for p in learner.teacher.parameters())


def test_item_10_a_resumed_learner_goes_on_bit_for_bit(pair, make_model, batch):
    """Resumed after one step of three; a head trains in the first two of them."""
    whole, first, second = (learner_of(make_model(), config(*pair, batch=16, ema=0.5), steps=8) for _ in range(3))
    for _ in range(3):
        report = step(whole, batch)
    step(first, batch)
    file = io.BytesIO()
    state = first.state()
    step(first, batch)  # a state is a copy: what happens after it does not matter
    torch.save(state, file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    assert second.step == 1
    for _ in range(2):
        resumed = step(second, batch)
    assert resumed == report
    for part in (lambda of: of.parameters, lambda of: of.optimiser.head_parameters, lambda of: of.average.values):
        assert all(torch.equal(a, b) for a, b in zip(part(second), part(whole), strict=True))
    assert second.model.sha256 == whole.model.sha256


SWITCHES = ({"recompute": True}, {"precision": "bf16"}, {"attack": InnerAttack(2, 0.75, "bf16")})


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_a_resumed_learner_goes_on_bit_for_bit_with_every_switch(switch, make_model, batch):
    """That of a fused optimiser stands in test_fused.py, that of a compiled attack in test_compiling.py."""
    whole, first, second = (learner_of(make_model(), config(TeCoA(), batch=16, **switch)) for _ in range(3))
    for _ in range(3):
        report = step(whole, batch)
    step(first, batch)
    second.restore(first.state())
    for _ in range(2):
        resumed = step(second, batch)
    assert resumed == report
    assert torch.equal(learned(second), learned(whole))


def test_a_learner_without_the_optimisers_state_would_not(make_model, batch):
    whole, forgetful = (learner_of(make_model(), tecoa()) for _ in range(2))
    step(whole, batch)
    state = whole.state()
    forgetful.restore({**state, "optimizer": forgetful.state()["optimizer"]})
    step(whole, batch)
    step(forgetful, batch)
    assert not torch.equal(learned(whole), learned(forgetful))


def test_two_micro_batches_add_up_to_the_gradient_of_one_unless_they_are_part_of_the_method(pair, make_model, batch):
    """On random starts, which no rounding moves."""
    gradients = []
    for size in (16, 8):
        learner = learner_of(make_model(), config(*pair, batch=16, attack=InnerAttack(1, 0.0)))
        learner.step = learner.head_steps
        for part in torch.arange(16).split(size):
            learner.accumulate(batch[0][part], batch[1][part], [batch[2][i] for i in part])
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    assert gradients[0].abs().max() > 1e-4
    if pair[0].whole_batch:
        assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[0].abs().max()
    else:
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_in_float64_the_micro_batch_does_not_matter_unless_it_is_part_of_the_method(pair, make_model, batch):
    """With the attack in it: three steps in micro-batches of 16 and of 4 agree to 1e-9."""
    found = []
    for size in (16, 4):
        learner = learner_of(make_model(), config(*pair, batch=16, micro_batch=size), dtype=torch.float64, steps=6)
        for _ in range(learner.head_steps + 2):
            step(learner, batch, size)
        found.append(learned(learner))
    assert found[0].dtype == torch.float64
    if pair[0].whole_batch:
        assert (found[0] - found[1]).abs().max() > 1e-4
    else:
        torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)


def test_a_model_with_a_logit_bias_keeps_it_and_its_text_tower(make_model, batch):
    learner = learner_of(make_model("siglip"), tecoa())
    before = {name: p.detach().clone() for name, p in learner.model.clip.named_parameters() if not name.startswith("visual.")}
    step(learner, batch)
    now = dict(learner.model.clip.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert {"logit_bias", "logit_scale", "text.positional_embedding"} <= before.keys()


# --- the step -------------------------------------------------------------------------------------------------------------------------


def test_the_order_inside_a_batch_and_of_its_ids_does_not_matter(make_model, batch):
    pixels, y, ids = batch
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    learners = [learner_of(make_model(), tecoa(), dtype=torch.float64) for _ in range(2)]
    step(learners[0], batch)
    step(learners[1], (pixels[order], y[order], [ids[i] for i in order]))
    torch.testing.assert_close(learned(learners[0]), learned(learners[1]), atol=1e-9, rtol=1e-9)


def test_item_10_two_workers_with_half_a_batch_take_the_step_of_one(make_model, batch):
    """The sums of `World` are all that connects them: both get the sum of both, and both take the same step."""
    pixels, y, ids = batch
    alone = learner_of(make_model(), tecoa(), dtype=torch.float64)
    expected = step(alone, batch, 8)
    sent = []
    second = learner_of(make_model(), tecoa(), dtype=torch.float64, world=heard(sent))  # only to hear what it would send
    second.accumulate(pixels[8:], y[8:], ids[8:])
    second.update()
    waiting = iter(sent)
    first = learner_of(make_model(), tecoa(), dtype=torch.float64, world=summed(lambda t: t.add_(next(waiting))))
    first.accumulate(pixels[:8], y[:8], ids[:8])
    report = first.update()
    assert next(waiting, None) is None
    assert report["loss"] == pytest.approx(expected["loss"])
    torch.testing.assert_close(learned(first), learned(alone), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_names_the_step(tiny_model, batch, poison):
    learner = learner_of(tiny_model, tecoa())
    step(learner, batch)
    before = learned(learner)
    learner.accumulate(*batch)
    if poison == "loss":
        learner.parts["tecoa"] *= float("nan")
    else:
        learner.parameters[3].grad.view(-1)[0] = float("inf")
    with pytest.raises(UserError, match=r"^step 2: .*not finite; lower optim\.lr"):
        learner.update()
    assert torch.equal(learned(learner), before)


def test_gradients_are_cleared_between_steps(make_model, batch):
    once, twice = (learner_of(make_model(), tecoa(name="sgd", momentum=0.0)) for _ in range(2))
    step(once, batch)
    step(twice, batch)
    once.step = twice.step = 0
    first, second = step(once, batch), step(twice, batch)
    assert first == second
    assert all(p.grad is None for p in once.parameters)
    assert once.parts == {}


def test_the_attack_of_a_step_is_keyed_by_seed_step_and_id(tiny_model, pictures):
    x, y, ids = pictures(4)
    learner = learner_of(tiny_model, config(TeCoA(), batch=4))

    def attacked(step=0, names=ids):
        learner.step = step
        return learner.attacked(Batch(x, y, names)).images

    assert torch.equal(attacked(), attacked())
    assert not torch.equal(attacked(), attacked(step=1))
    assert not torch.equal(attacked()[0], attacked(names=["other", *ids[1:]])[0])
    assert torch.equal(attacked()[1:], attacked(names=["other", *ids[1:]])[1:])


def test_no_threat_trains_on_the_clean_images(tiny_model, pictures):
    x, y, ids = pictures(4)
    learner = learner_of(tiny_model, Config(threat=ThreatModel(image=None)))
    assert torch.equal(learner.attacked(Batch(x, y, ids)).images, x)


def test_sgd_by_hand(tiny_model, batch):
    """Two steps of momentum 0.5 and weight decay 0.1 at lr_at's rates."""
    optim = {"name": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}
    learner = learner_of(tiny_model, tecoa(**optim), dtype=torch.float64)
    w, velocity = learned(learner), 0.0
    for t in range(2):
        learner.accumulate(*batch)
        velocity = 0.5 * velocity + torch.cat([p.grad.flatten() for p in learner.parameters]) + 0.1 * w
        w = w - lr_at(t, learner.config.optim, STEPS) * velocity
        learner.update()
        torch.testing.assert_close(learned(learner), w)


def test_item_8_the_schedule_at_its_corners():
    """Warm-up lr (t+1)/W, then lr (1 + cos(pi (t-W)/(N-W))) / 2."""
    optim, n = Optim(lr=2.0, warmup=10), 110
    at = [lr_at(t, optim, n) for t in (0, 4, 9, 10, 60, 110)]
    assert at == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 0.0])
    assert lr_at(0, Optim(lr=2.0), n) == 2.0
    assert lr_at(5, Optim(lr=2.0, warmup=10), 5) == 1.2  # shorter than its warm-up


def test_pixels_become_images():
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert to_images(pixels, "cpu").flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert to_images(pixels.expand(2, 4, 5, 3).numpy(), "cpu").shape == (2, 3, 4, 5)


def test_validation_counts_and_leaves_no_trace(tiny_model, pictures):
    x, y, ids = pictures(40)
    learner = learner_of(tiny_model, config(TeCoA(), micro_batch=16))
    before = learned(learner)
    with torch.no_grad():
        right = learner.student(x).argmax(1) == y
    found = learner.validate(x, y, ids)
    assert found["val/clean"] == pytest.approx(right.float().mean().item())
    assert 0 <= found["val/robust"] <= found["val/clean"] <= 1
    assert found == learner.validate(x, y, ids)
    with torch.no_grad():
        y = learner.student(x).argmax(1)
    sure = learner.validate(x, y, ids)
    assert sure["val/clean"] == 1.0
    assert sure["val/robust"] < 1.0
    assert torch.equal(learned(learner), before)
    assert all(p.grad is None for p in learner.parameters)
