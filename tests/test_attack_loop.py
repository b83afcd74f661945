"""The training attack's loop: nothing in it waits for a device, nothing is computed twice, and no parameter has a graph."""

from collections import Counter

import pytest
import torch
from parts import SMALL, TOWER, config, learner_of, name, pairs
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustclip.attacks.base import Scored
from robustclip.defenses import APT, LEAF, Batch, CleanCE, CleanContrastive, TeCoA
from robustclip.training import inner_attack
from robustclip.training.config import InnerAttack

CLEAN = (CleanCE, CleanContrastive, LEAF)  # nothing is attacked, or no image
ATTACKED = [pair for pair in pairs() if not isinstance(pair[0], CLEAN)]
# A number that Python asks of a tensor, or a shape that only its values tell: on a GPU both wait for all that was asked of it before.
ASKED = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
WAITS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}
VERDICT = {"aten::argmax", "aten::isfinite"}  # which nobody asks for here


class Functions(TorchFunctionMode):
    """Counts the functions of tensors that Python calls."""

    def __init__(self):
        super().__init__()
        self.called = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.called[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts the operations that reach a device, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.called = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = "aten::index" in func._schema.name and any(t.dtype == torch.bool for t in args[1] if t is not None)
        self.called["aten::nonzero" if masks else func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class Seen:
    """What the loop of a training attack did: functions, operations, passes of both towers, and the leaves of the last loss's graph."""

    def __init__(self):
        self.functions, self.operations, self.passes, self.leaves = Functions(), Operations(), Counter(), set()

    @property
    def waits(self):
        """Return what waited for the device."""
        asked = {each: n for each, n in self.functions.called.items() if each in ASKED}
        return asked | {each: n for each, n in self.operations.called.items() if each in WAITS}


def leaves(loss):
    """Return the ids of the tensors that gradients of a loss would be added up in."""
    found, todo, known = set(), [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [each for each, _ in node.next_functions]
    return found


@pytest.fixture
def watched(monkeypatch):
    """Return the Seen of every training attack from now on; `spoil`, if set, is done to each loss."""
    seen, original = Seen(), inner_attack.pgd
    seen.spoil = lambda images, scored: scored

    def pgd(objective, images, ball, **settings):
        def shown(images):
            scored = seen.spoil(images, objective(images))
            seen.leaves = leaves(scored.loss) - {id(images)}
            return scored

        with seen.functions, seen.operations:
            return original(shown, images, ball, **settings)

    monkeypatch.setattr(inner_attack, "pgd", pgd)
    return seen


def attack(learner, pictures, seen):
    """Attack 8 pictures as a step does, counting the passes of both towers."""
    x, y, ids = pictures(8)
    clip = learner.student.clip
    hooks = [part.register_forward_hook(lambda *given, name=name: seen.passes.update([name])) for name, part in towers(clip).items()]
    learner.attacked(Batch(x, y, ids))
    for hook in hooks:
        hook.remove()


def towers(clip):
    """Return a part of each tower that every pass goes through once."""
    return {"images": clip.visual.ln_post, "texts": clip.ln_final}


def chosen(pair, **changes):
    return config(*pair, batch=8, attack=InnerAttack(3, 0.5, **changes))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", ATTACKED, ids=name)
def test_no_step_waits_for_the_device_or_computes_what_nobody_asked_for(tiny_model, pictures, watched, pair, precision):
    learner = learner_of(tiny_model, chosen(pair, precision=precision))
    learner.step = learner.head_steps
    if learner.roles.head is not None:
        learner.roles.head.requires_grad_(False)  # as `accumulate` does when its own steps are over
    attack(learner, pictures, watched)
    assert watched.operations.called["aten::sign"] == 3
    assert watched.waits == {}
    assert watched.operations.called.keys().isdisjoint(VERDICT)
    assert watched.leaves == set()
    assert all(p.grad is None for p in learner.parameters)
    assert watched.passes["texts"] == 0


def test_a_perturbed_context_is_the_one_that_asks_the_text_tower_at_every_step(tiny_model, pictures, watched):
    (part,) = (part for part in SMALL if type(part).__name__ == "JointTokens")
    learner = learner_of(tiny_model, chosen((APT("perturbed"), part)))
    attack(learner, pictures, watched)
    assert watched.passes["texts"] == 1 + 3  # and once as the objective is made
    assert watched.waits == {}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda x, scored: scored if scored.loss.mean() > -1 else None, "__bool__"),
        (lambda x, scored: Scored(scored.loss * (1 + 0 * scored.loss.max().item())), "item"),
        (lambda x, scored: Scored(scored.loss * (1 + 0 * max(scored.loss.tolist()))), "tolist"),
        (lambda x, scored: Scored(scored.loss[scored.loss > -1]), "aten::nonzero"),
        (lambda x, scored: Scored(scored.loss * (1 + 0 * scored.loss.detach().cpu())), "cpu"),
    ],
    ids=["a branch", "a number", "a list", "a mask", "a copy"],
)
def test_a_loop_that_waits_is_seen(tiny_model, pictures, watched, fault, said):
    watched.spoil = fault
    attack(learner_of(tiny_model, chosen((TeCoA(), TOWER))), pictures, watched)
    assert watched.waits[said] >= 3  # the gradient of a mask waits too


def test_a_graph_of_parameters_and_a_verdict_are_seen(tiny_model, pictures, watched):
    learner = learner_of(tiny_model, chosen((TeCoA(), TOWER)))
    extra = nn.Parameter(torch.ones(()))
    watched.spoil = lambda x, scored: Scored(scored.loss * extra + 0 * learner.student(x).argmax(1))
    attack(learner, pictures, watched)
    assert watched.leaves == {id(extra)}
    assert watched.operations.called["aten::argmax"] == 3
    assert watched.passes["images"] == 6
