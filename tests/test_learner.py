"""The learner: every defence with every trainable learns, resumes bit for bit, and adds micro-batches up to one batch."""

import io
import itertools
import math

import pytest
import torch

from robustclip.config import Config, InnerAttack, Optim, Validation
from robustclip.defenses import DEFENSES
from robustclip.errors import UserError
from robustclip.learner import Learner, lr_at, to_images
from robustclip.threat import Ball, ThreatModel
from robustclip.trainables import TRAINABLES, PadPrompt, TokenPrompt, VisualTower

NAMES, TEMPLATES, STEPS = ["red", "green", "blue", "grey"], ["a photo of a {}.", "a {} thing."], 15
RATES = {VisualTower: 3e-3, PadPrompt: 0.2, TokenPrompt: 0.5}
COMBINATIONS = list(itertools.product(DEFENSES, TRAINABLES))


def config(defense=DEFENSES[0], trainable=VisualTower, eps=2.0, batch=32, micro_batch=32, **optim):
    made = trainable() if isinstance(trainable, type) else trainable
    settings = {"lr": RATES[type(made)], "weight_decay": 1e-4} | optim
    return Config(
        defense=defense(),
        trainable=made,
        threat=ThreatModel(Ball("Linf", eps)),
        attack=InnerAttack(2, 0.75),
        optim=Optim(batch=batch, micro_batch=micro_batch, **settings),
        validation=Validation(images=16, eps=4.0, steps=3),
    )


def learner_of(model, config, dtype=torch.float32, **options):
    return Learner(config, model, NAMES, TEMPLATES, STEPS, dtype=dtype, **options)


@pytest.fixture
def batch(pictures):
    """Return 32 images as 8-bit pixels [32,16,16,3], labels and ids."""
    x, y, ids = pictures(32)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(), y, ids


def step(learner, batch, micro_batch=32):
    pixels, labels, ids = batch
    for first in range(0, len(ids), micro_batch):
        part = slice(first, first + micro_batch)
        learner.accumulate(pixels[part], labels[part], ids[part])
    return learner.update()


def learned(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters])


# --- every combination ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=COMBINATIONS, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def combination(request):
    return request.param


def test_the_loss_falls(combination, tiny_model, batch):
    learner = learner_of(tiny_model, config(*combination))
    reports = [step(learner, batch) for _ in range(STEPS)]
    assert all(math.isfinite(value) for report in reports for value in report.values())
    assert sum(r["loss"] for r in reports[-3:]) < 0.95 * sum(r["loss"] for r in reports[:3])
    parts = {name: value for name, value in reports[0].items() if name.startswith("loss/")}
    assert parts
    assert reports[0]["loss"] == pytest.approx(sum(parts.values()))
    assert [r["lr"] for r in reports] == [lr_at(t, learner.config.optim, STEPS) for t in range(STEPS)]


def test_a_resumed_learner_goes_on_bit_for_bit(combination, make_model, batch):
    whole, first, second = (learner_of(make_model(), config(*combination)) for _ in range(3))
    for _ in range(5):
        step(whole, batch)
    for _ in range(2):
        step(first, batch)
    file = io.BytesIO()
    state = first.state()
    step(first, batch)  # a state is a copy: what happens after it does not matter
    torch.save(state, file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    assert second.step == 2
    for _ in range(3):
        report = step(second, batch)
    assert torch.equal(learned(second), learned(whole))
    assert second.model.sha256 == whole.model.sha256
    assert report["lr"] == lr_at(4, whole.config.optim, STEPS)


def test_a_learner_without_the_optimisers_state_would_not(make_model, batch):
    whole, forgetful = (learner_of(make_model(), config()) for _ in range(2))
    step(whole, batch)
    state = whole.state()
    forgetful.restore({**state, "optimizer": forgetful.state()["optimizer"]})
    step(whole, batch)
    step(forgetful, batch)
    assert not torch.equal(learned(whole), learned(forgetful))


def test_two_micro_batches_add_up_to_the_gradient_of_one(combination, make_model, batch):
    gradients = []
    for micro_batch in (32, 16):
        learner = learner_of(make_model(), config(*combination, eps=0.0))
        pixels, y, ids = batch
        for part in torch.arange(32).split(micro_batch):
            learner.accumulate(pixels[part], y[part], [ids[i] for i in part])
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert gradients[0].abs().max() > 1e-4


def test_in_float64_the_micro_batch_does_not_matter(combination, make_model, batch):
    """With the attack in it: five steps in micro-batches of 32 and of 8 agree to 1e-9."""
    found = []
    for micro_batch in (32, 8):
        learner = learner_of(make_model(), config(*combination, micro_batch=micro_batch), dtype=torch.float64)
        for _ in range(5):
            step(learner, batch, micro_batch)
        found.append(learned(learner))
    assert found[0].dtype == torch.float64
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)


def test_only_the_trainable_changes(combination, tiny_model, batch):
    before = {name: value.clone() for name, value in tiny_model.clip.state_dict().items()}
    learner = learner_of(tiny_model, config(*combination))
    start = learned(learner)
    step(learner, batch)
    assert not torch.equal(learned(learner), start)
    changed = {name for name, value in learner.model.clip.state_dict().items() if not torch.equal(value, before[name])}
    if combination[1] is VisualTower:
        assert changed
        assert all(name.startswith("visual.") for name in changed)
    else:
        assert not changed  # frozen CLIP is bit-identical
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.clip.state_dict().items())
    assert not any(p.requires_grad for p in learner.teacher.parameters())


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_resnet_learns_what_makes_sense_and_refuses_the_rest(defense, make_model, pictures):
    x, y, ids = pictures(8, 32)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for trainable in (VisualTower(), PadPrompt(2)):
        report = step(learner_of(make_model("resnet"), config(defense, trainable, batch=8)), (pixels, y, ids))
        assert math.isfinite(report["loss"])
    with pytest.raises(UserError, match="prompt tokens need a vision transformer"):
        learner_of(make_model("resnet"), config(defense, TokenPrompt))


@pytest.mark.parametrize("kind", ["siglip"])
def test_a_model_with_a_logit_bias_learns_too(make_model, batch, kind):
    learner = learner_of(make_model(kind), config())
    bias = learner.model.clip.logit_bias.clone()
    step(learner, batch)
    assert torch.equal(learner.model.clip.logit_bias, bias)


# --- the step -------------------------------------------------------------------------------------------------------------------------


def test_the_order_inside_a_batch_and_of_its_ids_does_not_matter(make_model, batch):
    pixels, y, ids = batch
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    learners = [learner_of(make_model(), config(), dtype=torch.float64) for _ in range(2)]
    step(learners[0], batch)
    step(learners[1], (pixels[order], y[order], [ids[i] for i in order]))
    torch.testing.assert_close(learned(learners[0]), learned(learners[1]), atol=1e-9, rtol=1e-9)


def test_two_workers_with_half_a_batch_take_the_step_of_one(make_model, batch):
    """`sum_over_workers` is all that connects them: both get the sum of both, and both take the same step."""
    pixels, y, ids = batch
    alone = learner_of(make_model(), config(), dtype=torch.float64)
    expected = step(alone, batch, 16)
    sent = []
    first, second = (learner_of(make_model(), config(), dtype=torch.float64, sum_over_workers=lambda t: sent.append(t)) for _ in range(2))
    first.accumulate(pixels[:16], y[:16], ids[:16])
    second.accumulate(pixels[16:], y[16:], ids[16:])
    second.sum_over_workers = lambda t: sent.append(t.clone())
    second.update()  # only to hear what it would send
    first.sum_over_workers = lambda t: t.add_(sent[0])
    report = first.update()
    assert report["loss"] == pytest.approx(expected["loss"])
    torch.testing.assert_close(learned(first), learned(alone), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_names_the_step(tiny_model, batch, poison):
    learner = learner_of(tiny_model, config())
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
    once, twice = (learner_of(make_model(), config(name="sgd", momentum=0.0)) for _ in range(2))
    step(once, batch)
    step(twice, batch)
    once.step = twice.step = 0
    first, second = step(once, batch), step(twice, batch)
    assert first == second
    assert all(p.grad is None for p in once.parameters)
    assert once.parts == {}


def test_the_attack_of_a_step_is_keyed_by_seed_step_and_id(tiny_model, pictures):
    from robustclip.defenses import Batch

    x, y, ids = pictures(4)
    learner = learner_of(tiny_model, config(batch=4))

    def attacked(step=0, names=ids):
        learner.step = step
        return learner.attacked(Batch(x, y, names)).images

    assert torch.equal(attacked(), attacked())
    assert not torch.equal(attacked(), attacked(step=1))
    assert not torch.equal(attacked()[0], attacked(names=["other", *ids[1:]])[0])
    assert torch.equal(attacked()[1:], attacked(names=["other", *ids[1:]])[1:])


def test_no_threat_trains_on_the_clean_images(tiny_model, pictures):
    from robustclip.defenses import Batch

    x, y, ids = pictures(4)
    learner = learner_of(tiny_model, Config(threat=ThreatModel(image=None)))
    assert torch.equal(learner.attacked(Batch(x, y, ids)).images, x)


def test_sgd_by_hand(tiny_model, batch):
    """Two steps of momentum 0.5 and weight decay 0.1 at lr_at's rates."""
    optim = {"name": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}
    learner = learner_of(tiny_model, config(**optim), dtype=torch.float64)
    w, velocity = learned(learner), 0.0
    for t in range(2):
        learner.accumulate(*batch)
        velocity = 0.5 * velocity + torch.cat([p.grad.flatten() for p in learner.parameters]) + 0.1 * w
        w = w - lr_at(t, learner.config.optim, STEPS) * velocity
        learner.update()
        torch.testing.assert_close(learned(learner), w)


def test_the_schedule_at_its_corners():
    """Item 8: warm-up lr (t+1)/W, then lr (1 + cos(pi (t-W)/(N-W))) / 2."""
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
    learner = learner_of(tiny_model, config(micro_batch=16))
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
