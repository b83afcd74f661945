"""Planted faults of attacks on prompts, each in the protocol a run was made under."""

from dataclasses import dataclass, replace
from itertools import count

from probes import changed

from robustclip.attacks.multimodal import Text
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.threat import TextBudget


@dataclass(frozen=True)
class Spoiled(TextAttack):
    """A text attack whose prompts are spoiled afterwards."""

    spoil: object = None

    def __call__(self, classifier, guide=None):
        found = super().__call__(classifier, guide)
        return replace(found, texts=tuple(self.spoil(text) for text in found.texts))


def under(subject, text):
    """Return the subject as if its run had met a text attack too."""
    protocol = replace(subject.resolved.protocol, attacks=(*subject.resolved.protocol.attacks, Text(text)), independent=True)
    return changed(subject, resolved=replace(subject.resolved, protocol=protocol))


def planted(spoil, budget):
    return lambda subject, patch: under(subject, Spoiled(RandomWords(), budget, spoil=spoil))


def another_every_time(subject, patch):
    number = count()
    return under(subject, Spoiled(RandomWords(), TextBudget(words=2), spoil=lambda text: text.replace("photo", f"p{next(number)}")))


ONE = TextBudget(words=1)
FAULTS = [
    ("G10", "two words for a budget of one", planted(lambda text: text.replace("photo of", "tent near"), ONE)),
    ("G10", "another class's name", planted(lambda text: "a photo of a grey.", ONE)),
    ("G10", "a word of the template", planted(lambda text: text.replace("photo", "tent"), TextBudget(words=1, scope="class name"))),
    ("G10", "other prompts every time", another_every_time),
]
