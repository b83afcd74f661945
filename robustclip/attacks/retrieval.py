"""What an attack on an image raises where texts are looked up by images and images by texts: right is what is of one's own group."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Objective, Scored
from robustclip.base.dtypes import wide
from robustclip.models.classifier import ZeroShotClassifier

NONE = float("-inf")  # the logit of what is left out


def image_to_text(classifier: nn.Module, text_groups: Tensor, groups: Tensor, ks: Sequence[int]) -> Objective:
    """Return the objective that drives every text of an image's group out of the first k texts that the image finds, for all `ks` at once.

    `classifier` has a class for every text; `text_groups` [M] and `groups` [B] say what belongs together. Its gradient is that of the mean
    over `ks` of the cross-entropy of the image's own texts against all others but the k - 1 first of these: at k = 1 the softmax over all
    texts, beyond it what stands in the k-th place. Its value counts the wrong texts before the first right one, up to the largest k, and
    only between equal counts is it that mean: so if any iterate is out of the first k, for any of the `ks`, the one that an attack keeps
    is. Fooled are images that are out for all of them. Needs as many wrong texts as the largest k.
    """
    own, depth = text_groups == groups[:, None], max(ks)

    def objective(images: Tensor) -> Scored:
        logits = wide(classifier(images))
        right, wrong = (logits.masked_fill(~mask, NONE) for mask in (own, ~own))
        loss = torch.stack([ahead(wrong, right.logsumexp(1), k) for k in ks]).mean(0)
        before = (~own & ~(logits < right.amax(1, keepdim=True))).sum(1)  # ties, and what is not finite, count as wrong
        value = before.clamp(max=depth) + loss / (1 + loss)
        return Scored(value.detach() + (loss - loss.detach()), before >= depth)

    return objective


def ahead(wrong: Tensor, right: Tensor, k: int) -> Tensor:
    """Return the cross-entropy [B] of what is `right` [B], a logit, against `wrong` logits [B,M] without the k - 1 highest of them."""
    if k > 1:
        wrong = wrong.scatter(1, wrong.topk(k - 1, dim=1).indices, NONE)
    return F.softplus(wrong.logsumexp(1) - right)  # minus the log of a share would round to 0 where a model is sure


def text_to_image(classifier: nn.Module, text_groups: Tensor, groups: Tensor, crowd: Tensor) -> Objective:
    """Return the objective of an image in a gallery that is attacked as a whole: CLIP's contrastive loss of the image, both ways.

    Its own texts lose it among the clean images of other groups, whose `crowd` is fixed, in the mean over these texts; and it comes near
    the texts of others, in whose way it then is. Nothing says that it is fooled, for nobody knows what the others become: an attack goes
    on to its last step.
    """
    own = text_groups == groups[:, None]

    def objective(images: Tensor) -> Scored:
        logits = wide(classifier(images))
        right, wrong = (logits.masked_fill(~mask, NONE) for mask in (own, ~own))
        lost = F.softplus(crowd - logits).masked_fill(~own, 0.0).sum(1) / own.sum(1)
        return Scored(lost + ahead(wrong, right.logsumexp(1), 1))

    return objective


def crowd_of(classifier: ZeroShotClassifier, features: Tensor, groups: Tensor, text_groups: Tensor) -> Tensor:
    """Return for every text [M] the logsumexp of its logits with all images of other groups, of unit image features [N,D], groups [N]."""
    own = groups[:, None] == text_groups
    return wide(classifier.scores(features)).masked_fill(own, NONE).logsumexp(0).detach()
