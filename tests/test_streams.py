"""Prompts that live longer than one image: with a reset they are the tuner, without one the past decides, and an attacker uses it."""

import pytest
import torch
from conftest import NAMES
from toys import ids_of

from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.test_time import TPT
from robustclip.test_time.stream import Stream, run


@pytest.fixture
def tuner(tiny_model):
    return TPT(views=4, keep=0.5, lr=0.3, steps=2).classifier(tiny_model.classifier(NAMES, ("a photo of a {}.",)), 0)


def logits(tuner, reset, images, ids):
    stream = Stream(tuner, reset)
    return torch.cat([stream(images[i : i + 1], id_) for i, id_ in enumerate(ids)])


def test_a_reset_after_every_image_is_the_tuner_itself(tuner, pictures):
    images, ids = pictures(5)[0], ids_of(5)
    assert torch.allclose(logits(tuner, 1, images, ids), logits_of(tuner, images, ids, 5), atol=1e-4)


def test_without_a_reset_the_order_decides_and_with_one_only_within_a_turn(tuner, pictures):
    images, ids = pictures(6)[0], ids_of(6)
    alone = logits(tuner, 1, images, ids)
    for reset, same in ((None, (0,)), (3, (0, 3)), (2, (0, 2, 4))):
        found = logits(tuner, reset, images, ids)
        agree = [torch.allclose(found[i], alone[i], atol=1e-4) for i in range(6)]
        assert agree == [i in same for i in range(6)]


def test_an_attacker_of_the_image_before_breaks_a_clean_one_behind_it(tuner, pictures):
    images, _, _ = pictures(8)
    ids, ball, poisoned = ids_of(8), Ball("Linf", 32.0), []
    clean = run(tuner, None, images, ids)

    def poison(stream, i, image):
        if i % 2 or i + 1 == len(images):
            return image
        found = stream.poison(image, images[i + 1 : i + 2], clean[i + 1 : i + 2], (ids[i], ids[i + 1]), ball, 5, 0)
        assert float((found - image).abs().max()) <= ball.radius + 1e-6
        state = {name: p.clone() for name, p in stream.state.items()}
        before, after = (stream._harm(images[i + 1 : i + 2], clean[i + 1 : i + 2], (ids[i], ids[i + 1]))(x).loss for x in (image, found))
        assert float(after.detach()) > float(before.detach()), "the clean image behind it is read with less confidence"
        assert all(torch.equal(p, state[name]) for name, p in stream.state.items()), "looking ahead changes nothing"
        poisoned.append(i)
        return found

    run(tuner, None, images, ids, poison)
    assert poisoned == [0, 2, 4, 6]


def test_a_stream_that_puts_its_prompt_back_cannot_be_poisoned(tuner, pictures):
    images, ids = pictures(2)[0], ids_of(2)
    noise = (images[:1] + 0.2 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for reset in (1, None):
        found = [logits(tuner, reset, torch.cat([first, images[1:]]), ids)[1] for first in (images[:1], noise)]
        assert torch.equal(*found) == (reset == 1)


def test_a_reset_below_one_is_refused(tuner):
    with pytest.raises(UserError, match="reset is 0"):
        Stream(tuner, 0)
