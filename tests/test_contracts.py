"""What every part keeps, whoever adds one: values that travel, names that tell apart, files that say what they are for."""

import dataclasses
import inspect
import pickle
from pathlib import Path

import pytest

from robustclip.attacks import ATTACKS
from robustclip.base.values import from_json, key, to_json
from robustclip.defenses import DEFENSES, PAIRED
from robustclip.evaluation.protocols import PROTOCOLS
from robustclip.training.recipes import RECIPES
from robustclip.training.trainables import TRAINABLES

PARTS = [*ATTACKS.values(), *(kind() for kind in (*DEFENSES, *PAIRED, *TRAINABLES)), *PROTOCOLS.values(), *RECIPES.values()]
SOURCES = sorted((Path(__file__).parents[1] / "robustclip").rglob("*.py"))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: getattr(part, "name", type(part).__name__))
def test_a_part_is_a_frozen_value_that_travels(part):
    assert dataclasses.is_dataclass(part)
    assert pickle.loads(pickle.dumps(part)) == part
    assert hash(pickle.loads(pickle.dumps(part))) == hash(part)
    assert len(key(part)) == 16
    for field in dataclasses.fields(part)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, None)
    assert inspect.getdoc(type(part))


@pytest.mark.parametrize("kind", [*DEFENSES, *PAIRED, *TRAINABLES], ids=lambda kind: kind.__name__)
def test_a_part_of_a_config_reads_back_from_json(kind):
    assert from_json(kind, to_json(kind())) == kind()


KINDS = [*DEFENSES, *PAIRED, *TRAINABLES, *dict.fromkeys(type(attack) for attack in ATTACKS.values())]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_is_part_of_the_key(kind):
    """A field that is no setting, or a name that hides one, would let two different results share a key."""
    fields = {field.name for field in dataclasses.fields(kind)}
    made = kind("FGSM") if kind.__name__ == "Library" else kind()
    assert to_json(made).keys() == {"type", *fields} | ({"revision"} if hasattr(kind, "revision") else set())


def test_the_dictionaries_are_keyed_by_the_parts_names():
    assert all(attack.name == name for name, attack in ATTACKS.items())
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())
    assert len({kind.__name__ for kind in (*DEFENSES, *PAIRED, *TRAINABLES)}) == len(DEFENSES) + len(PAIRED) + len(TRAINABLES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_file_says_what_it_is_for(path):
    text = path.read_text()
    assert not text.strip() or text.startswith('"""')
