"""What there is, one line each: models, recipes, protocols, sets, attacks."""

from typing import Any

from robustclip.attacks.catalogue import KNOWN
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.data.variants import AMONG, TYPOGRAPHIC
from robustclip.data.world import FINE_TUNING, SETS
from robustclip.evaluation.presets import TITLES
from robustclip.evaluation.protocols import PROTOCOLS
from robustclip.models import checkpoints
from robustclip.names import ENSEMBLE, INTERPOLATE, TOWERS
from robustclip.test_time import TEST_TIME
from robustclip.training.recipes import RECIPES


def _first_line(value: Any) -> str:
    """Return the first sentence of what a class says of itself."""
    return (type(value).__doc__ or "").strip().splitlines()[0]


def list_models() -> dict[str, str]:
    """Return what may be given as a model's name -> what it is; words in capitals stand for yours."""
    embedded = {
        name: f"ships with the package: pre-trained on the rendered world, {checkpoints.input_size(str(folder))} px images"
        for name, folder in checkpoints.embedded().items()
    }
    others = {
        "open_clip:NAME/TAG": "open_clip's zoo, e.g. open_clip:ViT-B-32-quickgelu/openai",
        "open_clip:NAME/FILE": "an architecture of the zoo with the weights of a file, whose name has a dot or a slash",
        "open_clip:NAME/random[seed=0]": "an untrained one, drawn from the seed",
        "CHECKPOINT": "the folder of a fine-tuned model, e.g. outputs/runs/KEY/model",
        f"{INTERPOLATE}ALPHA:CHECKPOINT": "weights between CLIP (0) and the fine-tuned model (1)",
        f"{ENSEMBLE}A,B": "one classifier, the mean of two models' logits",
        f"{TOWERS}A,B": "the visual tower of A with the text tower of B",
    }
    return embedded | others | {f"{kind}[SETTING=VALUE,...]:MODEL": _first_line(usual) for kind, usual in TEST_TIME.items()}


def list_recipes() -> dict[str, str]:
    """Return every recipe -> what it is."""
    return {name: recipe.about for name, recipe in RECIPES.items()}


def list_protocols() -> dict[str, str]:
    """Return every protocol -> its sets, attacks and radii."""
    return {
        name: f"{len(each.sets)} sets, {each.n or 'all'} images each, eps {', '.join(f'{eps:g}' for eps in each.eps)}/255, "
        f"{len(each.attacks)} attack{'s' if len(each.attacks) > 1 else ''}: {', '.join(attack.name for attack in each.attacks[:3])}"
        f"{', ...' if len(each.attacks) > 3 else ''}"
        for name, each in PROTOCOLS.items()
    }


def list_sets() -> dict[str, str]:
    """Return every data set, embedded or of a published protocol -> what it is; words in capitals stand for yours."""
    embedded = {
        name: f"embedded, {len(each.class_names)} classes, {'real scans' if each.scenes is None else 'rendered'}"
        f"{', what is fine-tuned on' if name == FINE_TUNING else ''}"
        for name, each in SETS.items()
    }
    variants = {
        f"{TYPOGRAPHIC}SET": "any of them with the name of another class written on every image, to evaluate on",
        f"{AMONG}OTHER:SET": "any of them among the class names of another one too, to evaluate on",
    }
    return embedded | {name: f"{title}, to be prepared" for name, title in TITLES.items()} | variants


def list_attacks() -> dict[str, str]:
    """Return every attack, and every word of papers that stands for several -> what it is."""
    single = {name: _first_line(attack) for name, (attack, *others) in KNOWN.items() if not others and name not in ENSEMBLES}
    return single | {name: f"the papers' word for {' + '.join(attack.name for attack in each)}" for name, each in ENSEMBLES.items()}
