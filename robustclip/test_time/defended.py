"""A model under a test-time defence: its classifiers adapt to every image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustclip.models.adaptive import Adaptive
from robustclip.models.class_texts import Templates
from robustclip.models.model import Model
from robustclip.test_time import TEST_TIME, TestTime


@dataclass(frozen=True)
class AdaptiveModel(Model):
    """A model whose classifiers adapt to every image; `began_as` gives the CLIP that it was fine-tuned from, None where it is that."""

    adapts = True
    defence: TestTime = TEST_TIME["views"]
    began_as: Callable[[], Model] | None = None

    def classifier(self, class_names: Sequence[str], templates: Templates) -> Adaptive:  # type: ignore[override]
        """Return the adapting classifier over `class_names`; raises UserError where the defence does not fit the model."""
        made = self.defence.classifier(super().classifier(class_names, templates), seed=0)
        began_as, device = self.began_as, next(self.clip.parameters()).device
        return (made.told(lambda: began_as().to(device).classifier(class_names, templates)) if began_as else made).eval()
