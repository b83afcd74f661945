"""robustclip: make CLIP-style models robust to adversarial images and texts, and measure it honestly.

    import robustclip
    model = robustclip.load("tiny-vit8")
    result = robustclip.evaluate(model, "shapes", attacks=["apgd-ce-20"], eps=[1, 2, 4], n=60)
    print(result)

Importing costs nothing: what is named here is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustclip.api import Evaluation, attack, evaluate, finetune, load, save
    from robustclip.listing import list_attacks, list_models, list_protocols, list_recipes, list_sets

__all__ = [
    "Evaluation",
    "attack",
    "evaluate",
    "finetune",
    "list_attacks",
    "list_models",
    "list_protocols",
    "list_recipes",
    "list_sets",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("robustclip.listing" if name.startswith("list_") else "robustclip.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
