"""Models by name: loading, and what is known of one without loading it.

A checkpoint's folder or one of another program, an embedded model, `open_clip:NAME/TAG`; two as one, `interpolate:ALPHA:CHECKPOINT`,
`ensemble:A,B`, `towers:A,B`; or one under a test-time defence, `KIND[setting=value,...]:MODEL`. Names are read here alone: what combines
or defends takes models. A name means one model: paths are told from the root before a name goes anywhere, and who loads it elsewhere says
which identity it must have.
"""

from collections.abc import Sequence

from robustclip.base.errors import UserError
from robustclip.base.labels import told_apart
from robustclip.models import zoo
from robustclip.models.model import Model
from robustclip.names.reading import INTERPOLATE, base_of, located, origin, parse, written
from robustclip.names.several import ENSEMBLE, TOWERS
from robustclip.names.single import Folder, OfZoo, Single

__all__ = [
    "ENSEMBLE",
    "INTERPOLATE",
    "TOWERS",
    "Folder",
    "OfZoo",
    "Single",
    "absolute",
    "base",
    "called",
    "display_name",
    "identity",
    "input_size",
    "load",
    "load_exactly",
    "located",
    "origin",
    "parse",
    "selection",
    "written",
]


def absolute(name: str) -> str:
    """Return the one way to write a name, with all its paths from the root: what other processes and machines are given.

    Raises UserError for a path that could not be told from the rest of such a name.
    """
    named = parse(name)
    said = str(named)
    if not _reads_back(said, named):
        raise UserError(f"{name}: its path, as in {said}, holds a comma or a bracket, by which names are divided: move it, or link to it")
    return said


def _reads_back(said: str, named: object) -> bool:
    try:
        return parse(said) == named
    except UserError:
        return False


def load(name: str) -> Model:
    """Return the model that a name stands for; raises UserError for anything else, and for weights that do not fit their config."""
    return parse(name).load()


def load_exactly(name: str, sha256: str) -> Model:
    """Return the model that a name stands for; raises UserError where it is another one than that of the identity `sha256`.

    The identity is told after loading, so that weights which are replaced meanwhile are never taken for those that were asked for.
    """
    named = parse(name)
    model = named.load()
    found = zoo.identity_of(model) if isinstance(named, OfZoo) else named.identity()
    if found != sha256:
        raise UserError(
            f"{name} is another model here and now (sha256 {found[:12]}...) than the one this work is about ({sha256[:12]}...): it was "
            "replaced since, or this machine has another one in its place; put it where every machine reads the same, and run the "
            "command again"
        )
    return model


def identity(name: str) -> str:
    """Return the hash that names the model in keys and records, without building a folder's model."""
    return parse(name).identity()


def display_name(name: str) -> str:
    """Return how records and tables call a model where no other one has the same name."""
    return parse(name).display_name()


def called(names: Sequence[str]) -> dict[str, str]:
    """Return how records and tables call each of these models: two of one display name are told apart by the start of their hashes."""
    said = {name: (display_name(name), identity(name)) for name in names}
    labels = told_apart(said.values())
    return {name: labels[each] for name, each in said.items()}


def selection(name: str) -> frozenset[str] | None:
    """Return the ids of the images that training and choosing a model saw, None where it does not say."""
    return parse(name).selection()


def input_size(name: str) -> int:
    """Return the side of the images a model works on, from its config alone where there is one."""
    return parse(name).input_size()


def base(model: Model) -> str | None:
    """Return the name of the model that this one was fine-tuned from, as it is found now; None where its card names none.

    Raises UserError where no model with the hash of its base is there.
    """
    found = base_of(model.card, model.name)
    return str(found) if found else None
