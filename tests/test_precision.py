"""The precision of training is what its config says, and of whatever is scored true fp32; a device that lacks one says so."""

from types import SimpleNamespace

import pytest
import torch
from parts import config, learned, learner_of, pixels, step

from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.base.precision import SWITCHES, computing, full_precision, reduced, tensor_cores
from robustclip.base.values import key
from robustclip.defenses import FARE, CleanContrastive, TeCoA
from robustclip.evaluation import checks, ranking
from robustclip.evaluation import computing as cells
from robustclip.evaluation.alone import evaluate_images
from robustclip.training import learner as learning
from robustclip.training import statistics as moments
from robustclip.training.config import Config, InnerAttack, Optim
from robustclip.training.precision import check_precision, knows_bf16
from robustclip.training.proxy import share_right
from robustclip.training.trainables import Towers

CPU = torch.device("cpu")


def now():
    """Return the precision of what would be computed at this moment."""
    return "bf16" if torch.is_autocast_enabled("cpu") else "tf32" if reduced() else "fp32"


def switches():
    return [switch.fp32_precision for switch in SWITCHES]


# --- the switches ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("inner", ["fp32", "tf32", "bf16"])
def test_each_context_has_its_own_precision_and_gives_back_the_one_around_it(outer, inner):
    before = switches()
    with computing(outer, CPU):
        with computing(inner, CPU):
            assert now() == inner
            with full_precision():
                assert (now(), switches()) == ("fp32", ["ieee"] * len(SWITCHES))
            assert now() == inner
        assert now() == outer
    assert (switches(), torch.is_autocast_enabled("cpu")) == (before, False)


def test_switches_come_back_after_an_error_as_whoever_set_them_left_them():
    before = switches()
    try:
        SWITCHES[0].fp32_precision = "tf32"
        with pytest.raises(ZeroDivisionError), tensor_cores(False):
            _ = 1 / (reduced() is not None)
        assert SWITCHES[0].fp32_precision == "tf32"
    finally:
        for switch, value in zip(SWITCHES, before):
            switch.fp32_precision = value


@pytest.mark.parametrize("first", [0, 1])
def test_switches_come_back_where_threads_leave_in_any_order(first):
    before, contexts = switches(), [tensor_cores(True), full_precision()]
    for context in contexts:
        context.__enter__()
    contexts[first].__exit__(None, None, None)
    assert reduced() == ("tf32" if first == 1 else None)  # what the one that is left asked for
    contexts[1 - first].__exit__(None, None, None)
    assert switches() == before


def test_where_there_is_a_gpu_the_older_switches_say_the_same(monkeypatch):
    older = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for allowed in (False, True):
        with tensor_cores(allowed):
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
            assert reduced() == ("tf32" if allowed else None)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == older


# --- training -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def any_device(monkeypatch):
    """Let a CPU take the switches of a GPU, for which it has no use."""
    monkeypatch.setattr(learning, "check_precision", lambda config, device: None)


@pytest.mark.parametrize("update", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("attack", ["fp32", "tf32", "bf16"])
def test_attack_and_update_compute_each_in_its_own(tiny_model, pictures, any_device, attack, update):
    x, y, ids = pictures(8)
    learner, forwards, backwards = (
        learner_of(tiny_model, config(FARE(), batch=8, attack=InnerAttack(2, 0.5, attack), precision=update)),
        [],
        [],
    )

    def seen(module, args, output):
        forwards.append(now())
        if output.requires_grad:
            output.register_hook(lambda g: backwards.append("tf32" if reduced() else "fp32"))

    learner.student.clip.visual.ln_post.register_forward_hook(seen)
    learner.accumulate(pixels(x), y, ids)
    learner.update()
    assert forwards == [attack] * 2 + [update]
    assert backwards == ["tf32" if each == "tf32" else "fp32" for each in forwards]  # gradients of bf16 are bf16 by their own types


def test_a_loss_over_pairs_computes_as_the_update(tiny_model, pictures, any_device):
    x, y, ids = pictures(8)
    learner, seen = learner_of(tiny_model, config(CleanContrastive(), Towers(), batch=8, precision="tf32")), []
    learner.student.clip.visual.ln_post.register_forward_hook(lambda *given: seen.append(now()))
    step(learner, (pixels(x), y, ids))
    assert set(seen) == {"tf32"}


def test_what_does_not_learn_is_asked_once_in_each_precision(tiny_model, pictures, any_device):
    """As the teacher's features of the clean images are: those of a bf16 attack are not what the fp32 update compares with."""
    x, y, ids = pictures(8)
    for attack, update, times in (("fp32", "fp32", 1), ("bf16", "fp32", 2), ("tf32", "fp32", 2), ("tf32", "tf32", 1)):
        learner, seen = learner_of(tiny_model.copy(), config(FARE(), batch=8, attack=InnerAttack(2, 0.5, attack), precision=update)), []
        learner.teacher.clip.visual.register_forward_hook(lambda *given, seen=seen: seen.append(now()))
        learner.accumulate(pixels(x), y, ids)
        assert seen == [attack, update][:times]


def test_class_embeddings_are_fp32_whatever_is_around(tiny_model):
    plain = tiny_model.classifier(["a", "b"], ["a {}."]).class_embeddings
    for around in ("bf16", "tf32"):
        with computing(around, CPU):
            assert torch.equal(tiny_model.classifier(["a", "b"], ["a {}."]).class_embeddings, plain)


@pytest.mark.parametrize("part", ["attack", "optim"])
def test_a_device_that_lacks_a_precision_is_named(monkeypatch, tiny_model, part):
    def asked(name):
        return Config(attack=InnerAttack(precision=name)) if part == "attack" else Config(optim=Optim(precision=name))

    with pytest.raises(UserError, match=rf"{part}\.precision is tf32, which NVIDIA's tensor cores know, and this run is on a cpu"):
        learner_of(tiny_model, asked("tf32"))
    for allowed in ("fp32", "bf16"):
        check_precision(asked(allowed), "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    check_precision(asked("fp32"), "cuda")
    for name in ("tf32", "bf16"):
        with pytest.raises(UserError, match=rf"{part}\.precision is {name}, which takes .* 8\.0 .*, and Tesla T4 has 7\.5: take fp32"):
            check_precision(asked(name), "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name in ("fp32", "tf32", "bf16"):
        check_precision(asked(name), "cuda")


@pytest.mark.parametrize(("has", "knows"), [(None, False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_for_a_gpu_that_knows_it(monkeypatch, has, knows):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: has)
    assert knows_bf16() is knows


def test_every_precision_is_another_run():
    runs = [Config(), *(Config(attack=InnerAttack(precision=each)) for each in ("tf32", "bf16"))]
    runs += [Config(optim=Optim(precision=each)) for each in ("tf32", "bf16")]
    assert len({key(run) for run in runs}) == 5


# --- scoring --------------------------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Raised where a place that scores would begin to compute."""


def stop(*given, **named):
    raise Stopped(now())


def cell(monkeypatch):
    monkeypatch.setattr(cells, "check_shards", lambda *given: None)
    monkeypatch.setattr(cells, "on_device", stop)
    return cells.compute, (None, SimpleNamespace(dataset="d", rows=None), SimpleNamespace(sets={"d": None}))


def retrieved(monkeypatch):
    return ranking.compute, (SimpleNamespace(pairs=None, met=stop), None)


def checked(monkeypatch):
    def failing(subject):
        raise ValueError(now())

    monkeypatch.setitem(checks.CHECKS, "1", ("a check", "hard", failing))

    def run(number):
        raise Stopped(checks.run_check(None, number).reason.removeprefix("raised ValueError: "))

    return run, ("1",)


def held_out(monkeypatch):
    return share_right, (Config(), None, torch.zeros(2, 3, 4, 4), torch.zeros(2), ["a", "b"], stop)


def statistics(monkeypatch):
    monkeypatch.setattr(moments, "read_images", stop)
    return moments.moments_of, (SimpleNamespace(rows=[0], chunk=1, index=None, size=8, images=SimpleNamespace(resize=None)), None, 0)


PLACES = [cell, retrieved, checked, held_out, statistics]


@pytest.mark.parametrize("around", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_every_place_that_scores_is_in_fp32_whatever_is_around(monkeypatch, place, around):
    score, given = place(monkeypatch)
    with computing(around, CPU), pytest.raises(Stopped, match=r"^fp32$"):
        score(*given)


@pytest.mark.parametrize("around", ["tf32", "bf16"])
@pytest.mark.parametrize("place", [cell, retrieved, held_out, statistics], ids=lambda place: place.__name__)
def test_a_place_that_inherits_is_seen(monkeypatch, place, around):
    score, given = place(monkeypatch)
    with computing(around, CPU), pytest.raises(Stopped, match=rf"^{around}$"):
        score.__wrapped__(*given)


def test_given_images_are_scored_as_if_nothing_were_around(tiny_model, pictures):
    x, y, _ = pictures(8)

    def scored():
        rows, _ = evaluate_images(tiny_model, x, y, ["a", "b", "c", "d"], ["a {}."], (PGD(2),), (2.0,))
        return rows.select(["prediction", "confidence", "loss_best", "linf"]).to_pydict()

    plain, classifier = scored(), tiny_model.classifier(["a", "b", "c", "d"], ["a {}."])
    logits = classifier(x)
    with computing("bf16", CPU):
        assert scored() == plain
        assert not torch.equal(classifier(x), logits)  # which is what it would have been scored by


@pytest.mark.parametrize("update", ["fp32", "bf16"])
def test_a_run_in_bf16_is_validated_in_fp32(tiny_model, pictures, update):
    x, y, ids = pictures(8)
    learner, seen = learner_of(tiny_model, config(TeCoA(), batch=8, attack=InnerAttack(2, 0.5, "bf16"), precision=update)), set()
    start = learned(learner)
    step(learner, (pixels(x), y, ids))
    learner.student.clip.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(
        lambda m, a, output: seen.add((output.dtype, now()))
    )
    learner.validate(x, y, ids)
    assert seen == {(torch.float32, "fp32")}
    assert not torch.equal(learned(learner), start)
