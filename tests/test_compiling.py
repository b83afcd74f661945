"""The compiled tower of the training attack: equal to its own, compiled once, in its place for no longer than an attack, or refused."""

import shutil

import pytest
import torch
from parts import TOWER, config, learned, learner_of, pixels, step

from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.defenses import FARE, TRADES, Batch, TeCoA
from robustclip.models.dress import JointTokens, TokenPrompt
from robustclip.training import compiling
from robustclip.training.compiling import Compiled
from robustclip.training.config import Config, InnerAttack
from robustclip.training.trainables import LoRA

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    torch._dynamo.reset()


class Counting:
    """A backend of torch.compile that runs what it is given as it is, and counts what it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def learner_with(model, backend, defense=None, trainable=TOWER, **options):
    """Return a learner whose attack takes three steps on a tower compiled by a backend (None: on its own)."""
    learner = learner_of(model, config(defense or TeCoA(), trainable, batch=8, attack=InnerAttack(3, 0.5), **options))
    if backend is not None:
        learner.compiled = Compiled(learner.student, "default", "cpu", backend)
    return learner


def batch_of(pictures, side=16):
    x, y, ids = pictures(8)
    x = x if side == 16 else torch.nn.functional.interpolate(x, (side, side))
    return Batch(x, y, ids)


def same_attack(one, other, batch):
    """Assert that two learners' attacks agree: but for signs of gradients that are all but zero, the same images."""
    found = [learner.attacked(batch).images for learner in (one, other)]
    assert not torch.equal(found[0], batch.images)
    assert (found[0] - found[1]).abs().gt(1e-6).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("kind", "trainable", "options"),
    [("vit", TOWER, {}), ("vit", LoRA(2, 4.0), {}), ("vit", TOWER, {"recompute": True}), ("resnet", TOWER, {}), ("timm", TOWER, {})],
    ids=str,
)
def test_it_is_compiled_once_and_for_all_steps(make_model, pictures, kind, trainable, options):
    model, backend = make_model(kind), Counting()
    batch = batch_of(pictures, model.preprocess.size)
    plain, compiled = (learner_with(model.copy(), each, None, trainable, **options) for each in (None, backend))
    same_attack(plain, compiled, batch)
    assert backend.graphs == 1
    stepped = pixels(batch.images), batch.labels, batch.ids
    step(compiled, stepped)
    step(compiled, stepped)
    assert backend.graphs == 1


def test_a_resumed_learner_goes_on_bit_for_bit(make_model, pictures):
    batch = batch_of(pictures)
    stepped = pixels(batch.images), batch.labels, batch.ids
    whole, first, second = (learner_with(make_model(), "aot_eager") for _ in range(3))
    for learner in (whole, whole, first):
        step(learner, stepped)
    second.restore(first.state())
    step(second, stepped)
    assert torch.equal(learned(second), learned(whole))


@pytest.mark.parametrize("defense", [TeCoA(), FARE(), TRADES()], ids=lambda defense: type(defense).__name__)
def test_autograd_of_what_was_compiled_agrees(make_model, pictures, defense):
    plain, compiled = (learner_with(make_model(), backend, defense) for backend in (None, "aot_eager"))
    same_attack(plain, compiled, batch_of(pictures))


def failing(images):
    raise ZeroDivisionError


def test_nothing_but_the_attack_is_compiled(tiny_model, pictures):
    learner, batch, seen = learner_with(tiny_model, Counting()), batch_of(pictures), []
    visual = learner.student.clip.visual
    visual.register_forward_pre_hook(lambda module, args: seen.append("forward" in vars(module)))
    learner.accumulate(pixels(batch.images), batch.labels, batch.ids)
    assert seen == [True] * 3 + [False]  # three steps of the attack, one update
    learner.update()
    seen.clear()
    learner.validate(batch.images, batch.labels, batch.ids)
    assert not any(seen)
    learner.compiled.forward = failing
    with pytest.raises(ZeroDivisionError):
        learner.attacked(batch)
    assert "forward" not in vars(visual)


@pytest.mark.parametrize(
    ("mode", "trainable", "said"),
    [
        ("default", TokenPrompt(2), r"attack\.compile goes with towers without prompt tokens"),
        ("default", JointTokens("text to visual", 2, 1), r"attack\.compile goes with towers without prompt tokens"),
        ("reduce-overhead", TOWER, r"attack\.compile is 'reduce-overhead', which is CUDA graphs, and this run is on a cpu: take 'default'"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_refused(tiny_model, mode, trainable, said):
    with pytest.raises(UserError, match=said):
        learner_of(tiny_model, config(TeCoA(), trainable, attack=InnerAttack(2, 0.5, compile=mode)))


@pytest.mark.parametrize(
    ("kind", "variable", "value", "said"),
    [
        ("cpu", "CXX", None, r"needs a compiler, and there is no g\+\+: install g\+\+, set CXX, or leave it out"),
        ("cpu", "CXX", "my-compiler", r"there is no CXX=my-compiler"),
        ("cuda", "CC", None, r"there is no gcc or clang or cc: install g\+\+, set CC"),
    ],
)
def test_a_missing_compiler_is_named(monkeypatch, tmp_path, kind, variable, value, said):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    if value:
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=said):
        compiling.check_compiler(kind)
    (tmp_path / (value or "g++" if kind == "cpu" else "clang")).write_text("")
    (tmp_path / (value or "g++" if kind == "cpu" else "clang")).chmod(0o755)
    compiling.check_compiler(kind)


def test_it_is_an_option_with_three_values():
    assert override(Config(), {"attack.compile": "default"}).attack.compile == "default"
    with pytest.raises(UserError, match=r"attack\.compile.*'off' or 'default' or 'reduce-overhead'"):
        override(Config(), {"attack.compile": True})


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_inductor_agrees_with_the_tower_to_rounding_and_with_itself_to_the_bit(make_model, pictures, kind):
    model = make_model(kind)
    batch, runs = batch_of(pictures, model.preprocess.size), []
    plain = learner_with(model.copy(), None)
    for _ in range(2):
        learner = learner_of(model.copy(), config(TeCoA(), batch=8, attack=InnerAttack(3, 0.5, compile="default")))
        same_attack(plain, learner, batch)
        with learner.compiled.in_place(), torch.no_grad():
            features = learner.student.features(batch.images)
        with torch.no_grad():
            own = learner.student.features(batch.images)
        assert (features - own).abs().max() < 1e-5 * own.abs().max()
        step(learner, (pixels(batch.images), batch.labels, batch.ids))
        runs.append(learned(learner))
        torch._dynamo.reset()
    assert torch.equal(*runs)
