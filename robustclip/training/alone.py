"""Fine-tuning in this process, without Ray: the same steps on the same units as `fit`, so the same weights bit for bit."""

from collections.abc import Callable
from dataclasses import replace

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.threads import one_thread
from robustclip.data.plan import read_unit
from robustclip.models.model import FORMAT, Model
from robustclip.training.config import Config
from robustclip.training.gradients import NotFinite
from robustclip.training.job import training_data
from robustclip.training.learner import Learner
from robustclip.training.steps import steps


@one_thread()
def finetune_alone(
    model: Model, config: Config, out: str, on_step: Callable[[dict[str, float]], None] = lambda row: None
) -> tuple[Model, list[dict[str, float]]]:
    """Return a copy of a model fine-tuned by a config on the images under `out`, its card saying how, and the report of every step.

    The model given takes the place of `config.model`, and learns on the device where its weights lie. `on_step` is handed every report as
    it comes, validated at the end of an epoch. Raises UserError for images that are not there, parts that do not fit each other or the
    model, and a loss or a gradient that is not finite.
    """
    config = replace(config, model=model.name)
    data = training_data(config, out, lambda: model.preprocess.size)
    model.tell_names(data.card.class_names, config.templates or data.card.templates, f"data set {data.card.name}")
    device = next(model.clip.parameters()).device
    learner = Learner(config, model.copy(), data.card.class_names, data.card.templates, data.plan.steps, device)
    about = data.about(model.name, identity_of(model))
    units = (read_unit(data.plan, item, data.size, config.data.resize) for item in data.plan.items())
    history: list[dict[str, float]] = []
    try:
        for row in steps(learner, units, data.plan):
            if learner.step % data.plan.steps_per_epoch == 0:
                row |= learner.validate(*data.validation_images(device))
            history.append(row)
            on_step(row)
    except NotFinite as error:
        raise error.called(data.names()) from None
    learner.finish()
    read_by = {name: model.card[name] for name in ("tokenizer",) if name in model.card}
    return at_rest(replace(learner.model, card={"format": FORMAT, **read_by, **about})), history


def identity_of(model: Model) -> str:
    """Return what a model is known by: the identity of its name where that still stands for these weights, else their hash."""
    try:
        named = models.load(model.name)
    except UserError:  # a name of its maker's choice, which nothing is found by
        return model.sha256
    return models.identity(model.name) if named.sha256 == model.sha256 else model.sha256


def at_rest(model: Model) -> Model:
    """Return the model with all weights frozen, as one that was loaded: torch rounds otherwise for weights that may learn."""
    for part in (model.clip, model.prompt, model.readout):
        if part is not None:
            part.requires_grad_(False)
    return model
