"""What a learner does beside plain steps: a running average, a stage for the head, bf16, and a guard against what is not finite."""

import io

import pytest
import torch
from parts import NAMES, SMALL, TEMPLATES, config, learned, learner_of, pixels, step
from summing import heard

from robustclip import names as models
from robustclip.defenses import FARE, Batch, CleanContrastive, CoAdv, LinearAT, TeCoA
from robustclip.models import checkpoints
from robustclip.models.dress import LinearHead, PixelPrompt, TokenPrompt
from robustclip.training.config import InnerAttack
from robustclip.training.gradients import NotFinite
from robustclip.training.trainables import LoRA, Towers, VisualTower

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def batch(pictures):
    x, y, ids = pictures(16)
    return pixels(x), y, ids


# --- running average ------------------------------------------------------------------------------------------------------------------


def test_the_running_average_by_hand(tiny_model, batch):
    """a <- 0.75 a + 0.25 w after each step, from the weights at the start."""
    learner = learner_of(tiny_model, config(TeCoA(), batch=16, ema=0.75))
    expected = learned(learner)
    for _ in range(3):
        step(learner, batch)
        expected = 0.75 * expected + 0.25 * learned(learner)
        torch.testing.assert_close(torch.cat([p.flatten() for p in learner.average.values]), expected)
    assert (expected - learned(learner)).abs().max() > 1e-3
    assert learner_of(tiny_model, config(TeCoA())).average.values == []


@pytest.mark.parametrize("trainable", [VisualTower(), LoRA(2, 4.0), TokenPrompt(4), LinearHead()], ids=lambda t: type(t).__name__)
def test_the_average_is_what_is_validated_and_saved_and_the_weights_go_on_from_their_own(make_model, pictures, batch, trainable, tmp_path):
    x, y, ids = pictures(16, seed=1)
    averaging, plain = (learner_of(make_model(), config(TeCoA(), trainable, batch=16, ema=ema)) for ema in (0.5, 0.0))
    for learner in (averaging, plain):
        for _ in range(3):
            step(learner, batch)
    assert torch.equal(learned(averaging), learned(plain))
    with averaging.averaged():
        average = learned(averaging)
        with torch.no_grad():
            logits = averaging.student(x)
    assert torch.equal(learned(averaging), learned(plain))
    assert not torch.equal(average, learned(plain))
    found = averaging.validate(x, y, ids)
    assert found["val/clean"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    step(averaging, batch)
    step(plain, batch)
    assert torch.equal(learned(averaging), learned(plain))  # neither average nor validation touched the run
    with averaging.averaged(), torch.no_grad():
        logits = averaging.student(x)
    averaging.finish()
    checkpoints.save(averaging.model, str(tmp_path / "model"))
    with torch.no_grad():
        back = models.load(str(tmp_path / "model")).classifier(NAMES, TEMPLATES)(x)
        torch.testing.assert_close(back, logits, atol=1e-4, rtol=1e-4)
        assert (back - plain.student(x)).abs().max() > 1e-2


# --- a stage for the head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_the_head_stage_resumes_bit_for_bit(make_model, batch, stop):
    """Three of six steps train the head: stopped inside that stage, at its end, and after it."""
    chosen = config(LinearAT(head_share=0.5, head_lr=0.05), batch=16)
    whole, first, second = (learner_of(make_model(), chosen, steps=6) for _ in range(3))
    reports = [step(whole, batch) for _ in range(6)]
    for _ in range(stop):
        step(first, batch)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    assert second.in_head_stage == (stop < 3)
    assert [step(second, batch) for _ in range(6 - stop)] == reports[stop:]
    assert torch.equal(learned(second), learned(whole))
    assert all(torch.equal(a, b) for a, b in zip(second.optimiser.head_parameters, whole.optimiser.head_parameters))


def test_two_workers_share_the_head_stage(make_model, batch):
    """Half a batch each: the sum of what they send is what one alone would, for the head and then for the tower."""
    pixels_, y, ids = batch
    for at in (0, 3):
        sent = []
        for rows in (slice(None), slice(8), slice(8, None)):
            options = {"dtype": torch.float64, "world": heard(sent)}
            learner = learner_of(make_model(), config(LinearAT(head_share=0.5), batch=16), steps=6, **options)
            learner.step = at
            learner.accumulate(pixels_[rows], y[rows], ids[rows])
            learner.update()
        whole, first, second = map(torch.cat, zip(sent[::2], sent[1::2], strict=True))
        torch.testing.assert_close(first + second, whole, atol=1e-12, rtol=1e-9)
        assert len(whole) == (4 * 16 + 4 if at == 0 else 32_384) + 1


def test_a_head_that_never_learns_has_no_stage_and_no_state(tiny_model, batch):
    learner = learner_of(tiny_model, config(CoAdv(), batch=16))
    before = learner.roles.head.codes.clone()
    step(learner, batch)
    assert (learner.head_steps, learner.optimiser.head_parameters, learner.state()["head"]) == (0, [], [])
    assert torch.equal(learner.roles.head.codes, before)


# --- precision ------------------------------------------------------------------------------------------------------------------------


def dtypes(learner, run):
    """Return the types in which the first block computes while `run` runs."""
    seen, mlp = set(), learner.student.clip.visual.transformer.resblocks[0].mlp.c_fc
    handle = mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize("defense", [TeCoA(), FARE()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("update", TYPES)
@pytest.mark.parametrize("attack", TYPES)
def test_bf16_is_of_the_update_or_of_the_attack_as_asked(tiny_model, pictures, defense, attack, update):
    x, y, ids = pictures(8)
    chosen = config(defense, batch=8, attack=InnerAttack(1, 0.75, attack), precision=update)
    learner = learner_of(tiny_model, chosen)
    assert dtypes(learner, lambda: learner.attacked(Batch(x, y, ids))) == {TYPES[attack]}
    start = learned(learner)
    assert dtypes(learner, lambda: learner.accumulate(pixels(x), y, ids)) == {TYPES[attack], TYPES[update]}
    assert {value.dtype for value in learner.parts.values()} == {torch.float32}  # losses are summed in fp32 whatever computes them
    assert {p.grad.dtype for p in learner.parameters} == {p.dtype for p in learner.parameters} == {torch.float32}
    learner.update()
    assert not torch.equal(learned(learner), start)


@pytest.mark.parametrize("trainable", SMALL, ids=lambda t: type(t).__name__)
def test_bf16_takes_nearly_the_step_of_fp32(make_model, batch, trainable):
    moves = []
    for precision in ("fp32", "bf16"):
        defense = CleanContrastive() if isinstance(trainable, Towers) else TeCoA()
        chosen = config(defense, trainable, batch=16, precision=precision, name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
        learner = learner_of(make_model(), chosen)
        start = learned(learner)
        step(learner, batch)
        moves.append(learned(learner) - start)
    assert not torch.equal(*moves)
    assert torch.cosine_similarity(*moves, dim=0) > 0.95  # 0.974 with torch 2.9 for two towers


# --- what is not finite ---------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_finite_stops_with_its_step_and_its_images(make_model, batch):
    learner = learner_of(make_model(), config(TeCoA(), batch=16))
    step(learner, batch)
    with torch.no_grad():
        learner.parameters[0][0] = float("nan")
    with pytest.raises(NotFinite, match=r"^step 2: .*images of this step: picture/0/0, picture/0/1, .*, picture/0/7 and 8 more$"):
        step(learner, batch, 4)


def test_only_the_images_of_this_step_are_named(make_model, batch):
    pixels_, y, ids = batch
    learner = learner_of(make_model(), config(TeCoA(), PixelPrompt("pad", 2), batch=16))
    step(learner, batch)
    learner.accumulate(pixels_[:3], y[:3], ids[:3])
    learner.parameters[0].grad.fill_(float("inf"))
    with pytest.raises(NotFinite, match=r"images of this step: picture/0/0, picture/0/1, picture/0/2$"):
        learner.update()
