"""Test-time defences beside their published codes: TPT, R-TPT, TTC and TAPT on the given views and noise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from golden_case import Case, Method
from torch import Tensor

from robustclip.models.adaptive import Adaptive
from robustclip.models.dress import JointTokens, worn_by
from robustclip.models.model import Model
from robustclip.test_time import RTPT, TAPT, TPT, TTC, TestTime
from robustclip.test_time.defended import AdaptiveModel
from robustclip.test_time.moments import Moments, Targets, block_inputs
from robustclip.test_time.tuning import PromptTuner, State, entropy, most_confident

Found = dict[str, Tensor]


def defended(case: Case, model: Model, defence: TestTime, began_as: Callable[[], Model] | None = None) -> Any:
    """Return the classifier of a case's classes that a defence makes of a model."""
    own = {field.name: getattr(model, field.name) for field in fields(model)}
    adaptive = AdaptiveModel(**own, defence=defence, began_as=began_as)
    return adaptive.classifier(case.settings["class_names"], [case.settings["template"]])


@contextmanager
def noted(where: str) -> Iterator[list[tuple[Any, Any]]]:
    """Collect arguments and results of a function of ours, named by its place, inside this context."""
    module, name = where.rsplit(".", 1)
    function, found = getattr(import_module(module), name), []

    def call(*args: Any) -> Any:
        found.append((args, function(*args)))
        return found[-1][1]

    with patch(where, call):
        yield found


class Watched:
    """A tuner on given views [S,V,3,H,W], which keeps the loss, the gradient and the prompt of every step."""

    def __init__(self, tuner: PromptTuner, views: Tensor):
        self.losses: list[Tensor] = []
        self.gradients: list[State] = []
        self.states: list[State] = []
        loss, stepped = tuner.loss, tuner.stepped

        def step(state: State, moments: Any, gradients: State, number: int, through: bool) -> Any:
            found = stepped(state, moments, gradients, number, through)
            self.gradients.append(gradients)
            self.states.append(found[0])
            return found

        def lower(seen: Any) -> Tensor:
            self.losses.append(loss(seen))
            return self.losses[-1]

        tuner.loss, tuner.stepped, tuner.views = lower, step, lambda images, keys: views  # type: ignore[method-assign]
        self.logits = tuner(views[:, 0])


def words(case: Case, settings: TPT | RTPT) -> Found:
    """Return what TPT and R-TPT have in common: views, loss and gradient of one step, contexts after one and two, answers."""
    model, views = case.model(), case.arrays["views"]
    one, two = (defended(case, model, replace(settings, steps=steps)) for steps in (1, 2))
    logits = one.start_logits(views)
    first, both = Watched(one, views), Watched(two, views)
    return {
        "initial_context": one.prompt.context,
        "view_logits": logits,
        "entropies": entropy(logits),
        "kept": most_confident(logits, settings.kept),
        "loss": first.losses[0],
        "gradient": first.gradients[0]["context"],
        "context_1": first.states[0]["context"],
        "context_2": both.states[1]["context"],
        "loss_2": both.losses[1],
        "logits": first.logits,
        "plain_logits": one.base(case.arrays["images"]),
    }


def tpt(case: Case) -> Found:
    """Return what our TPT makes of the views."""
    return words(case, TPT(views=case.settings["views"], keep=case.settings["keep"]))


def rtpt(case: Case) -> Found:
    """Return what our R-TPT makes of the views, and how it weighs them."""
    with noted("robustclip.test_time.rtpt.reliability") as weighed:
        found = words(case, RTPT(views=case.settings["views"], keep=case.settings["keep"]))
    (features, _, _), weights = weighed[0]
    return found | {"cosines": features @ features.mT, "weights": weights}


class Asked:
    """A threshold that keeps what is compared with it."""

    def __init__(self, value: float):
        self.value = value

    def __gt__(self, found: Tensor) -> Tensor:
        self.found = found
        return found < self.value


def shares(parts: Tensor, total: Tensor) -> Tensor:
    """Return how much of each of the parts [B,P,n] a total [B,P] is made of [B,n]; solved twice, the second time for what rounding left."""
    q, r = torch.linalg.qr(parts)
    found = torch.zeros_like(r[..., 0])
    for _ in range(2):
        left = total - (parts @ found[..., None])[..., 0]
        found = found + torch.linalg.solve_triangular(r, q.mT @ left[..., None], upper=True)[..., 0]
    return found


def counterattack(case: Case, name: str, model: Model, began_as: Callable[[], Model] | None) -> Found:
    """Return what our TTC makes of the images; a step's delta is what is added where all weight lies on the last one."""
    images, noise, threshold = case.arrays["images"], case.arrays["noise"], Asked(float(case.arrays[f"{name}.threshold"]))
    settings = TTC(steps=case.settings["steps"][name], threshold=threshold)  # type: ignore[arg-type]

    def drawn(settings: TTC) -> tuple[Adaptive, Tensor]:
        defence = defended(case, model, settings, began_as)
        with patch("robustclip.test_time.ttc.uniform", return_value=(noise + 1) / 2):
            return defence, defence.adapt(images, defence.of([""] * len(images)).keys, False)

    last = [drawn(replace(settings, steps=steps, beta=1e4, threshold=10.0))[1] for steps in range(settings.steps + 1)]
    defence, moved = drawn(settings)
    deltas = torch.stack(last, 1)
    with patch("robustclip.test_time.ttc.uniform", return_value=(noise + 1) / 2):
        logits = defence(images)
    return {
        "tau": threshold.found,
        "deltas": 255 * deltas,
        "weights": shares(deltas.flatten(2).mT, moved.flatten(1)),
        "moved": 255 * moved,
        "logits": logits,
        "plain_logits": defence.base(images),
    }


def ttc(case: Case) -> Found:
    """Return what our TTC does of the images in all its cases; the victim is asked how stable they are for its original."""
    original, victim = case.model(), case.model()
    weights = {name.removeprefix("victim."): w for name, w in case.arrays.items() if name.startswith("victim.visual.")}
    assert not victim.clip.load_state_dict(weights, strict=False).unexpected_keys
    models = {"original": (original, None), "more_steps": (original, None), "victim": (victim, lambda: original)}
    return {f"{name}.{each}": x for name, parts in models.items() for each, x in counterattack(case, name, *parts).items()}


DESIGNS = {"v": "visual", "vli": "independent", "vlj": "text to visual"}


def wearing(case: Case, model: Model, name: str, kind: str) -> Model:
    """Return the model with the prompts of a design after a kind of training."""
    settings, start = case.settings, f"{name}.prompt_{kind}."
    prompt = JointTokens(DESIGNS[name], settings["tokens"], settings["depth"], settings["template"]).build(model, 0).double()
    prompt.load_state_dict({each.removeprefix(start): p for each, p in case.arrays.items() if each.startswith(start)})
    return worn_by(model, prompt.requires_grad_(False))


def aligned(case: Case, name: str, model: Model, folder: Path) -> Found:
    """Return what our TAPT makes of the views, from the statistics that ours makes of the training images."""
    found, files, worn = {}, {}, {}
    for kind in ("adversarial", "clean"):
        worn[kind] = wearing(case, model, name, kind)
        classifier = worn[kind].classifier(case.settings["class_names"], [case.settings["template"]])
        moments = Moments.of(block_inputs(classifier, case.arrays["training_images"]))
        found |= {f"statistics_{kind}.mean": moments.mean, f"statistics_{kind}.variance": moments.variance}
        files[kind] = str(folder / f"{name}-{kind}")
        Targets.of(moments, classifier, "training images", "train", "centre").write(files[kind])
    said, views = case.settings, case.arrays["views"]
    settings = TAPT(
        **files,
        views=said["views"],
        keep=said["keep"],
        gamma=said["gamma"][name],
        weight=said["alignment"]["weight_per_block"],
        paper_compat=True,
    )
    one, two = (defended(case, worn["adversarial"], replace(settings, steps=steps)) for steps in (1, 2))
    logits = one.start_logits(views)
    place = "robustclip.test_time.tapt"
    with noted(f"{place}.entropy_of_mean") as entropies, noted(f"{place}.alignment") as alignments:
        first = Watched(one, views)
    apart = {Path(args[1].file).name: value for args, value in alignments}
    both = Watched(two, views)
    found |= {
        "view_logits": logits,
        "kept": most_confident(logits, settings.kept),
        "loss": first.losses[0],
        "entropy": entropies[0][1],
        **{f"align_{kind}": apart[f"{name}-{kind}"] for kind in files},
        "logits": first.logits,
        "plain_logits": one.base(case.arrays["images"]),
        **{f"gradient.{each}": g for each, g in first.gradients[0].items()},
        **{f"prompt_after_1.{each}": p for each, p in first.states[0].items()},
        **{f"prompt_after_2.{each}": p for each, p in both.states[1].items()},
    }
    return {f"{name}.{each}": x for each, x in found.items()}


def tapt(case: Case) -> Found:
    """Return what our TAPT makes of the views, design by design."""
    model = case.model()
    with TemporaryDirectory() as folder:
        found = {each: x for name in DESIGNS for each, x in aligned(case, name, model, Path(folder)).items()}
    del found["vlj.prompt_after_2.weight"]  # the published ones are not in the folder
    return found


METHODS = [
    Method(
        "tpt",
        "TPT",
        tpt,
        equal="entropies, kept views, loss and gradient of the first step, loss of the second, context after 1 and 2 steps, logits",
        besides=["The images of a batch are tuned together, each as if alone."],
    ),
    Method(
        "rtpt",
        "R-TPT",
        rtpt,
        equal="entropies, kept views, losses, gradient, context after 1 and 2 steps, cosines and weights of the views, weighted logits",
        besides=[
            "A view is never its own neighbour; in the published code rounding lets some be, and its diagonal is masked exactly here."
        ],
    ),
    Method(
        "ttc",
        "TTC",
        ttc,
        equal="change of features under the start, every step, weights, what is added, logits; 2 and 4 steps, own or original's judgement",
        besides=["Each image's start is keyed by its id."],
    ),
    Method(
        "tapt",
        "TAPT (V, VLI, VLJ)",
        tapt,
        equal="statistics, entropy, both alignments, loss, gradients, prompts after 1 and 2 steps, logits, with `paper_compat`",
        besides=[
            "Without `paper_compat` all blocks with tokens are aligned, the last one too, and the variance is divided by k - 1.",
            "Every image starts from the trained prompts; the published V and VLI throw them away, which `random_reset` does.",
        ],
    ),
]
