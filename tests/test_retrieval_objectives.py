"""What attacks on retrieval raise, by hand: gradients, groups of texts, depths, ties."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.retrieval import image_to_text, text_to_image


class Scores(nn.Module):
    """Logits [B,M] that are the first M pixels of an image, a hundred times."""

    def __init__(self, texts: int):
        super().__init__()
        self.texts = texts

    def forward(self, images: Tensor) -> Tensor:
        return 100 * images.flatten(1)[:, : self.texts]


def images_of(logits: list[list[float]]) -> Tensor:
    """Return images [B,1,1,M] that Scores gives these logits for."""
    return torch.tensor(logits)[:, None, None] / 100


def test_the_gradient_is_that_of_the_cross_entropy_over_all_texts() -> None:
    x = images_of([[3.0, 1.0, 2.0, 0.0], [1.0, 1.5, 1.0, 0.5]]).requires_grad_()
    groups = torch.tensor([0, 2])
    loss = image_to_text(Scores(4), torch.arange(4), groups, (1,))(x).loss
    (found,) = torch.autograd.grad(loss.sum(), x)
    (wanted,) = torch.autograd.grad(F.cross_entropy(Scores(4)(x), groups, reduction="sum"), x)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_group_of_several_texts_is_held_by_any_of_them() -> None:
    """The image finds a text of its group first, though by places it would find another's."""
    x, texts = images_of([[1.0, 3.0, 2.0, 0.0]]), torch.tensor([0, 0, 1, 2])
    assert not bool(image_to_text(Scores(4), texts, torch.tensor([0]), (1,))(x).fooled)
    assert bool(image_to_text(Scores(4), torch.arange(4), torch.tensor([0]), (1,))(x).fooled)
    share = Scores(4)(x).softmax(1)[0, :2].sum()
    value = image_to_text(Scores(4), texts, torch.tensor([0]), (1,))(x).loss
    assert value.item() == pytest.approx(float(-share.log() / (1 - share.log())), rel=1e-4)


def test_more_wrong_texts_ahead_are_worth_more_than_any_cross_entropy() -> None:
    """Two images of one rank each: by the cross-entropy alone the first, which one text is far ahead of, would be the better."""
    x = images_of([[0.0, 40.0, -5.0, -5.0], [0.0, 0.1, 0.1, -5.0]])
    scored = image_to_text(Scores(4), torch.arange(4), torch.tensor([0, 0]), (1, 2, 3))(x)
    assert scored.loss[1] > scored.loss[0]
    assert [int(value) for value in scored.loss] == [1, 2]
    assert scored.fooled is not None
    assert scored.fooled.tolist() == [False, False]
    assert image_to_text(Scores(4), torch.arange(4), torch.tensor([0, 0]), (1, 2))(x).fooled.tolist() == [False, True]  # type: ignore


def test_ties_and_what_is_not_finite_are_a_success() -> None:
    x = images_of([[1.0, 1.0, 0.0], [float("nan"), 0.0, 0.0]])
    fooled = image_to_text(Scores(3), torch.arange(3), torch.tensor([0, 0]), (1,))(x).fooled
    assert fooled is not None
    assert fooled.tolist() == [True, True]


def test_beyond_the_first_place_what_counts_stands_there() -> None:
    """At k = 2 the text far ahead has its place in any case: the gradient is of the next."""
    x = images_of([[0.0, 9.0, 1.0, -3.0]]).requires_grad_()
    loss = image_to_text(Scores(4), torch.arange(4), torch.tensor([0]), (2,))(x).loss
    (found,) = torch.autograd.grad(loss.sum(), x)
    own, ahead, following, last = found.flatten().tolist()
    assert ahead == 0
    assert own < 0 < last < following


def test_an_image_loses_its_texts_and_gets_in_the_way_of_others() -> None:
    x = images_of([[2.0, 1.0, 1.0]]).requires_grad_()
    crowd, texts = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 1])
    scored = text_to_image(Scores(3), texts, torch.tensor([0]), crowd)(x)
    assert scored.fooled is None  # nobody knows what the others become
    (found,) = torch.autograd.grad(scored.loss.sum(), x)
    own, also, other = found.flatten().tolist()
    assert own < 0 < other
    assert also < 0
    lost = (F.softplus(torch.tensor(1.0 - 2.0)) + F.softplus(torch.tensor(0.0 - 1.0))) / 2
    among = -torch.tensor([2.0, 1.0, 1.0]).softmax(0)[:2].sum().log()
    assert scored.loss.item() == pytest.approx(float(lost + among), rel=1e-4)
