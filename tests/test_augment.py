"""Augmentation: an image is shown by its seed, step and id alone, before it is attacked, and never where it is scored."""

from dataclasses import replace

import pytest
import torch
from parts import config, learner_of, pixels, step

from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.defenses import FARE, CleanContrastive, TeCoA
from robustclip.training.config import Config
from robustclip.training.trainables import Towers
from robustclip.views.crops import crops
from robustclip.views.shifts import shifts


def augmenting(model, seed=0, augment="crop and flip", defense=None, **settings):
    """Return a learner that notes the images of every micro-batch it is about to attack, by id."""
    chosen = config(defense or TeCoA(), batch=8, seed=seed, **settings)
    learner = learner_of(model, replace(chosen, data=replace(chosen.data, augment=augment)), steps=4)
    learner.shown, attacked = {}, learner.attacked

    def noting(batch, *rest):
        learner.shown |= dict(zip(batch.ids, batch.images))
        return attacked(batch, *rest)

    learner.attacked = noting
    return learner


def walk(learner, pictures, order=range(8), micro_batch=8):
    """Take a step and return what was shown, in the order of the ids."""
    x, y, ids = pictures(8)
    order = list(order)
    step(learner, (pixels(x[order]), y[order], [ids[i] for i in order]), micro_batch)
    return torch.stack([learner.shown[id_] for id_ in ids])


def test_what_is_shown_depends_neither_on_the_micro_batch_nor_on_the_order(make_model, pictures):
    whole = walk(augmenting(make_model()), pictures)
    assert torch.equal(walk(augmenting(make_model()), pictures, micro_batch=2), whole)
    assert torch.equal(walk(augmenting(make_model()), pictures, [5, 2, 7, 0, 3, 6, 1, 4], 4), whole)


def test_every_step_seed_and_id_has_crops_of_its_own(make_model, pictures):
    learner, other = augmenting(make_model()), augmenting(make_model(), seed=1)
    shown = [walk(learner, pictures), walk(learner, pictures), walk(other, pictures)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert all(not torch.equal(x, y) for x, y in zip(shown[a], shown[b]))
    learner.step = 0
    assert torch.equal(walk(learner, pictures), shown[0])  # a resumed step shows what it would have shown
    x, y, _ = pictures(2)
    learner.accumulate(pixels(x[:1].expand(2, -1, -1, -1)), y[:1].expand(2), ["one", "two"])
    assert not torch.equal(learner.shown["one"], learner.shown["two"])


@pytest.mark.parametrize(("defense", "settings"), [(FARE(), {}), (CleanContrastive(), {"trainable": Towers()})], ids=["FARE", "Paired"])
def test_every_kind_of_defence_trains_on_the_crops(defense, settings, make_model, pictures):
    x, _, ids = pictures(8)
    shown = walk(augmenting(make_model(), defense=defense, **settings), pictures)
    stored = torch.as_tensor(pixels(x)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(shown, crops(stored, [(0, "augment", 0, id_) for id_ in ids], 1)[:, 0])
    assert torch.equal(walk(augmenting(make_model(), augment="none", defense=defense, **settings), pictures), stored)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_held_out_images_are_scored_as_they_are(make_model, pictures):
    scores = [augmenting(make_model(), augment=augment).validate(*pictures(16)) for augment in ("crop and flip", "none")]
    assert scores[0] == scores[1]


def test_an_unknown_augmentation_is_refused_by_name():
    assert override(Config(), {"data.augment": "crop and flip"}).data.augment == "crop and flip"
    with pytest.raises(UserError, match=r"data\.augment.*crop and flip"):
        override(Config(), {"data.augment": "flip"})


# --- shifts ---------------------------------------------------------------------------------------------------------------------------


def test_shifts_are_mirrored_windows_of_an_image_or_of_its_mirror_image():
    """Each image is one of the 25 windows of itself or of itself flipped, all channels alike, and all 50 occur."""
    x = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    sides = [torch.nn.functional.pad(side, (2,) * 4, mode="reflect")[0] for side in (x, x.flip(-1))]
    seen = torch.stack([side[:, dy : dy + 5, dx : dx + 6] for side in sides for dy in range(5) for dx in range(5)])
    moved = shifts(x.expand(800, -1, -1, -1), [("a key", i) for i in range(800)], 2)
    same = (moved[:, None] == seen[None]).flatten(2).all(2)
    assert same.any(1).all()
    assert same.any(0).all()
    assert same[:, :25].any(1).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_shifted_images_train_and_are_keyed_as_crops_are(make_model, pictures):
    x, _, ids = pictures(8)
    shown = walk(augmenting(make_model(), augment="shift and flip"), pictures)
    stored = torch.as_tensor(pixels(x)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(shown, shifts(stored, [(0, "augment", 0, id_) for id_ in ids]))
    assert torch.equal(walk(augmenting(make_model(), augment="shift and flip"), pictures, [5, 2, 7, 0, 3, 6, 1, 4], 4), shown)
    assert not torch.equal(walk(augmenting(make_model(), seed=1, augment="shift and flip"), pictures), shown)
