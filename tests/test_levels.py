"""The attacker's ladder on planted defences: each level reaches what it is there for, and the worst case is all of them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import NAMES, TEMPLATES
from torch import nn

from robustclip.attacks import APGD, APGDT, FABT, MIFGSM, PGD, Noise, Square
from robustclip.attacks.classes import for_classes
from robustclip.attacks.levels import GREY, SAID, Aimed, over_draws
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.base.threat import Ball
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.checks.state import no_memory
from robustclip.evaluation.protocols import Protocol
from robustclip.models.adaptive import Adaptive
from robustclip.records import metrics, survival
from robustclip.records import rows as records

BALL = Ball("Linf", 16.0)
LADDER = (*(Aimed(level, PGD(20)) for level in ("A0", "A1", "A2", "A3", "A4")), Aimed("A5", PGD(20), draws=3), Aimed("A6", Square(100)))


class Identity(Adaptive):
    """(a) Adapts to nothing."""

    def adapt(self, images, keys, through):
        return None

    def answer(self, images, keys, adapted):
        return self.base(images)


class Detached(Adaptive):
    """(b) Identity whose forward has no gradient: it answers at what its adaptation made of the image."""

    def adapt(self, images, keys, through):
        return images.detach() - images

    def answer(self, images, keys, adapted):
        return self.base(images + adapted)


class Naive(nn.Module):
    """(b) as a plain module, with nobody who knows where the adaptation ends."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, images):
        return self.base(images.detach()) + 0 * images.flatten(1)[:, :1]


class Rounds(Adaptive):
    """Only rounds its input, as an adaptation: nothing for an attacker who takes the gradient at the adapted image."""

    def adapt(self, images, keys, through):
        return (images * 8).round() / 8 - images

    def answer(self, images, keys, adapted):
        return self.base(images + adapted)


class Shifts(Adaptive):
    """(c) Adds noise that it draws for every image: an attack on one throw of its dice is no attack on another."""

    size = 0.25

    def adapt(self, images, keys, through):
        noise = [torch.randn(images.shape[1:], generator=generator(*key)) for key in keys]
        return self.size * torch.stack(noise)

    def answer(self, images, keys, adapted):
        return self.base((images + adapted).clamp(0, 1))


@pytest.fixture
def cell(tiny_model, pictures):
    """Return a classifier whose answers on clean images are the labels, the images, labels and ids."""
    images, _, ids = pictures(24)
    base = tiny_model.classifier(NAMES, TEMPLATES)
    with torch.no_grad():
        labels = base(images).argmax(1)
    base.undefended = lambda: base
    return base, images, labels, ids


def robust(defence, attack, cell, ball=BALL):
    base, images, labels, ids = cell
    defence.undefended = lambda: base
    found = attack(defence, images, labels, ids, ball, 0, 8)
    assert float((found.images - images).abs().max()) <= ball.radius + 1e-6
    return float((logits_of(defence, found.images, ids, 8).argmax(1) == labels).float().mean())


def all_levels(defence, cell):
    return {attack.level: robust(defence, attack, cell) for attack in LADDER}


def test_planted_a_a_defence_that_does_nothing_is_broken_as_if_it_were_not_there(cell):
    undefended = robust(cell[0], PGD(20), cell)
    assert undefended < 0.5
    found = all_levels(Identity(cell[0]), cell)
    assert {found[level] for level in ("A0", "A1", "A2", "A3", "A4")} == {undefended}
    assert abs(found["A5"] - undefended) < 0.1
    assert found["A6"] == robust(cell[0], Square(100), cell) < 1.0


def test_planted_b_a_forward_without_a_gradient_hides_from_a_plain_attack_alone(cell):
    assert robust(Naive(cell[0]), PGD(20), cell) == 1.0, "there is no gradient to follow"
    undefended, found = robust(cell[0], PGD(20), cell), all_levels(Detached(cell[0]), cell)
    assert found["A3"] == undefended, "BPDA takes the adaptation as a constant"
    assert found["A0"] == found["A2"] == undefended, "what breaks the model under it breaks it"
    assert found["A4"] == 1.0, "through it there is nothing"
    assert found["A6"] == robust(cell[0], Square(100), cell) < 1.0


def test_tapt_item_9_a_defence_that_only_rounds_falls_to_bpda_and_not_to_plain_clip(cell):
    defence = Rounds(cell[0])
    clean = float((logits_of(defence, cell[1], cell[3], 8).argmax(1) == cell[2]).float().mean())
    ball = Ball("Linf", 12.0)
    aware, oblivious = (robust(defence, Aimed(level, PGD(40)), cell, ball) for level in ("A3", "A0"))
    assert clean > 0.8
    assert aware <= oblivious
    x = cell[1][:4].clone().requires_grad_()
    g = torch.autograd.grad(defence.of(cell[3][:4])(x).sum(), x)[0]
    assert (g != 0).any(), "the rounding itself has a gradient of 0; its attacker does not look at it"


def test_planted_c_noise_drawn_per_image_looks_robust_to_one_throw_and_not_to_many(cell):
    base, images, _, ids = cell
    defence = Shifts(base)
    clean = logits_of(defence, images, ids, 8).argmax(1)
    wrong = [f"wrong/{i}" for i in range(len(ids))]  # an attacker who does not know the throw

    def stands(attack):
        found = attack(defence, images, clean, wrong, Ball("Linf", 24.0), 0, 8)
        return float((logits_of(defence, found.images, ids, 8).argmax(1) == clean).float().mean())

    one, many = stands(Aimed("A3", PGD(20))), stands(Aimed("A5", PGD(20), draws=12))
    assert many < one


def test_planted_d_the_start_is_not_the_static_model_where_the_reset_is_wrong(cell, make_model):
    base = cell[0]
    other = make_model("vit", seed=1).classifier(NAMES, TEMPLATES)
    defence = Identity(base, start=other)
    assert Aimed("A1", PGD(5)).target(defence) is base
    assert Aimed("A2", PGD(5)).target(defence) is other
    assert robust(defence, Aimed("A2", PGD(20)), cell) > robust(defence, Aimed("A1", PGD(20)), cell)


def test_levels_are_called_what_they_are(cell):
    base = cell[0]
    static, adapting = ([attack.says(each) for attack in LADDER] for each in (base, Identity(base)))
    assert static == ["grey-box A0"] + 6 * ["white-box"]
    assert adapting == ["grey-box A0", "grey-box A1", "grey-box A2"] + 4 * ["white-box"]
    names = [attack.name for attack in LADDER]
    assert all(("grey-box" in name) == (attack.level in GREY) for name, attack in zip(names, LADDER, strict=True))
    assert names[0] == f"A0 ({SAID['A0']}) pgd-20"
    assert names[5] == "A5 (EOT of 3) pgd-20"
    assert len(set(names)) == len(names)


def test_tapt_item_9_records_say_the_level_and_the_worst_case_is_of_all(cell):
    base, images, labels, ids = cell
    defence = Rounds(base)
    defence.undefended = lambda: base
    protocol = Protocol("ladder", ("x",), LADDER, (16.0,), n=None, independent=True, micro_batch=8)
    rows = run_cascade(defence, images, labels, ids, protocol)
    said = {row["attack"]: row["level"] for row in rows if row["attack"] != "clean"}
    assert list(said.values()) == ["grey-box A0", "grey-box A1", "grey-box A2", *4 * ["white-box"]]
    shared = {"protocol_hash": "h", "model": "m", "model_sha256": "s", "dataset": "x"}
    table = records.table([shared | {"level": "white-box"} | row for row in rows])
    names = [attack.name for attack in LADDER]
    worst = metrics.accuracy(survival.worst_case(table, names, [16.0])["m"]["x"], 16.0)
    each = [metrics.accuracy(survival.alone(table, [name], 16.0)["m"]["x"], 16.0).correct for name in names]
    assert worst.correct <= min(each)
    by_image = {id_: all(row["correct"] for row in rows if row["image_id"] == id_) for id_ in ids}
    assert worst.correct == sum(by_image.values()), "the minimum of every image, not of the means"


def test_tapt_item_9_more_steps_and_larger_balls_never_help_and_noise_is_weaker(cell):
    for defence in (Rounds(cell[0]), Identity(cell[0])):
        few, many = (robust(defence, Aimed("A3", PGD(steps, restarts=2)), cell) for steps in (2, 40))
        clean = float((logits_of(defence, cell[1], cell[3], 8).argmax(1) == cell[2]).float().mean())
        assert many <= few <= robust(defence, Noise(5), cell) <= clean
        assert robust(defence, Aimed("A3", PGD(40)), cell, Ball("Linf", 64.0)) <= 0.1


def test_tapt_item_9_the_whole_autoattack_leaves_no_more_than_pgd_on_a_static_model(cell):
    base = cell[0]
    pgd = robust(base, Aimed("A2", PGD(10)), cell)
    left = [Aimed("A2", attack)(base, *cell[1:], BALL, 0, 8) for attack in (APGD(10), APGDT(10, targets=3), FABT(10, targets=3))]
    stand = torch.stack([base(found.images).argmax(1) == cell[2] for found in left]).all(0)
    assert float(stand.float().mean()) <= pgd


class Leaks(Adaptive):
    """(e) Takes the mean of all images so far off every image."""

    def __init__(self, base):
        super().__init__(base)
        self.total, self.count = torch.zeros(()), 0

    def adapt(self, images, keys, through):
        self.total, self.count = self.total + images.detach().mean(0), self.count + 1
        return self.total / self.count / 2

    def answer(self, images, keys, adapted):
        return self.base((images - adapted).clamp(0, 1))


def test_planted_e_state_that_leaks_trips_check_12_and_earlier_images_poison_later_ones(cell):
    base, images, labels, ids = cell
    protocol = Protocol("x", ("x",), (PGD(1),), (2.0,), n=None)
    verdicts = []
    for defence in (Rounds(base), Leaks(base)):
        subject = SimpleNamespace(classifier=defence, attacked=defence, images=images, labels=labels, ids=ids, protocol=protocol)
        verdicts.append(no_memory(subject).passed)
    assert verdicts == [True, False]
    with torch.no_grad():
        after = []
        for first in (images[:1], 1 - images[:1]):  # an image and what an attacker sent in its place
            defence = Leaks(base)
            defence(first)
            after.append(defence(images[1:2]))
    assert not torch.allclose(*after)


def test_every_attack_can_be_aimed(cell):
    base, images, labels, ids = cell
    defence = Rounds(base)
    for attack in (PGD(2), MIFGSM(2, decay=0.0, diversity=0.5), APGD(3), APGDT(3, targets=3), FABT(2, targets=2), Square(4)):
        found = Aimed("A3", attack)(defence, images, labels, ids, BALL, 0, 8)
        alone = Aimed("A3", attack)(defence, images[3:4], labels[3:4], ids[3:4], BALL, 0, 8)
        assert torch.allclose(found.images[3], alone.images[0], atol=1e-6), "keyed by image: neighbours change nothing"


def test_fewer_classes_mean_fewer_targets_at_every_level():
    (reduced,) = for_classes([Aimed("A2", APGDT(5))], 6).values()
    assert reduced == Aimed("A2", APGDT(5, targets=5))
    assert list(for_classes([Aimed("A2", APGDT(5)), Aimed("A2", PGD(2))], 3)) == ["A2 (grey-box, start state) pgd-2"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Aimed("A9"), "attack level 'A9'"),
        (lambda: Aimed("A5"), "is PGD over several"),
        (lambda: Aimed("A5", APGD(3), draws=2), "is PGD over several"),
        (lambda: Aimed("A3", draws=2), "is PGD over several"),
    ],
)
def test_levels_that_there_are_not_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_plain_clip_must_be_known(cell):
    base, images, labels, ids = cell
    base.undefended = None
    with pytest.raises(UserError, match="does not say which that is"):
        Aimed("A0", PGD(1))(base, images, labels, ids, BALL, 0)


def test_one_draw_of_eot_is_bpda(cell):
    base, images, labels, ids = cell
    defence = Shifts(base)
    x, labels_ = images.clone().requires_grad_(), labels
    places = torch.arange(len(images))
    many = over_draws(defence, labels_, ids, PGD(1), 3)(places)(x)
    each = [cross_entropy(defence.of(ids, draw), labels_)(x).loss for draw in range(3)]
    assert torch.allclose(many.loss, torch.stack(each).mean(0))
    assert torch.equal(many.fooled, logits_of(defence, images, ids, 24).argmax(1) != labels), "the verdict is the scored throw's"


def test_an_ensemble_of_levels_counts_its_passes(cell):
    base, images, labels, ids = cell
    eot = Aimed("A5", PGD(3), draws=4)(Shifts(base), images, labels, ids, BALL, 0, 8)
    assert int(eot.trace.forwards.max()) == 4 * 4
    assert replace(Aimed("A5", PGD(3), draws=4), draws=2).name == "A5 (EOT of 2) pgd-3"
