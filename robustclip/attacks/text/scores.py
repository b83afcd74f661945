"""What a text attack raises: a number per rewritten prompt, of its unit features and those of its class."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

ScoreName = Literal["cosine", "distance", "margin", "image"]
Score = Callable[[Tensor, Tensor], Tensor]  # features [N,D] of rewritten prompts, unit but for a distance, the prompts they were [N] -> [N]


def away(clean: Tensor) -> Score:
    """Return 1 - cos to the prompt's own clean features, of clean ones [P,D].

    BERT-Attack on CLIP raises the KL divergence of softmaxed features; of unit vectors that is (1 - cos) / D but for 0.3 %.
    """
    return lambda features, own: 1 - (features * clean[own]).sum(1)


def far(clean: Tensor) -> Score:
    """Return the squared L2 distance of raw features to clean ones of each prompt [P,D] (LEAF, arXiv:2506.03355)."""
    return lambda features, own: (features - clean[own]).square().sum(1)


def margin(classes: Tensor, class_of: Tensor) -> Score:
    """Return the largest cosine to another class minus that to the own one, of class features [K,D] and the class of each prompt [P]."""

    def score(features: Tensor, own: Tensor) -> Tensor:
        cosines = features @ classes.T
        mine = class_of[own][:, None]
        return cosines.scatter(1, mine, float("-inf")).max(1).values - cosines.gather(1, mine)[:, 0]

    return score


def image_guided(images: Tensor, class_of: Tensor) -> Score:
    """Return minus the cosine to what the images of the own class look like, of their features [K,D] and the class of each prompt [P]."""
    return lambda features, own: -(features * images[class_of[own]]).sum(1)
