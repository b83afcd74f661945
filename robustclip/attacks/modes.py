"""The attacks on prompts, and on prompts and images together, that a protocol may name."""

from collections.abc import Iterable
from dataclasses import replace

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import Attack
from robustclip.attacks.multimodal import CoAttack, GuidedCoAttack, Multimodal, OracleText, Separate, Text
from robustclip.attacks.text.hotflip import HotFlip
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import Characters, Neighbours, RandomWords, Table
from robustclip.base.threat import TextBudget

# Exhaustive over places, but for characters, of which every prompt has dozens: there at the two most important places.
TEXTS: dict[str, TextAttack] = {
    attack.source.name: attack
    for attack in (
        TextAttack(RandomWords()),
        TextAttack(Neighbours()),
        TextAttack(HotFlip()),
        TextAttack(Characters(), TextBudget(edits=1), width=2),
    )
}


def with_collisions(text: TextAttack) -> TextAttack:
    """Return the text attack that may also write another class's name: every number of a text attack is given both ways."""
    return replace(text, collisions=True)


def in_names(text: TextAttack) -> TextAttack:
    """Return the text attack on the class names alone: elsewhere it may hit the template, which all classes share."""
    return replace(text, budget=replace(text.budget, scope="class name"))


def joint(text: TextAttack) -> tuple[Multimodal, ...]:
    """Return a text attack alone, and with the image attacked as well: by itself, towards the new prompts, and both guiding each other."""
    return (Text(text), Separate(text, APGD(20)), CoAttack(text, steps=20), GuidedCoAttack(text))


def modes_of(text: TextAttack) -> tuple[Multimodal, ...]:
    """Return every way to use a text attack: those of `joint`, and text in names, free to change labels, and knowing the label."""
    alone, *both = joint(text)
    return (alone, Text(in_names(text)), Text(with_collisions(text)), OracleText(text), *both)


def by_table(attacks: Iterable[Attack], table: Table) -> tuple[Attack, ...]:
    """Return the attacks with a table's words for all that rewrite prompts; those that differed in their source become one."""
    found = (replace(attack, text=attack.text.by_table(table)) if isinstance(attack, Multimodal) else attack for attack in attacks)
    return tuple(dict.fromkeys(found))


MODES: dict[str, Attack] = {attack.name: attack for text in TEXTS.values() for attack in modes_of(text)}
