"""A short run of a loss over pairs of images and prompts, for tests of MMCoA and of the step it takes."""

from dataclasses import replace

from parts import config, pixels

from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.training.config import InnerAttack
from robustclip.training.trainables import Towers

RANDOM = TextAttack(RandomWords())


def batch_of(pictures, n=16):
    x, y, ids = pictures(n)
    return pixels(x), y, ids


def run(defense, trainable=None, **optim):
    return replace(config(defense, trainable or Towers(), batch=16, **optim), attack=InnerAttack(2, 0.75))
