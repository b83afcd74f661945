"""The search of a text attack: which of the rewritten prompts its score likes best, within the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from robustclip.attacks.text.hotflip import HotFlip
from robustclip.attacks.text.masked import MaskedWords
from robustclip.attacks.text.rewriting import Rewritten
from robustclip.attacks.text.scores import Score, ScoreName, away, far, image_guided, margin
from robustclip.attacks.text.sources import Asked, Characters, Neighbours, RandomWords, Table
from robustclip.attacks.text.vocabulary import encode
from robustclip.attacks.text.words import OtherNames, Prompt, prompts_of
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check_fields
from robustclip.base.threat import TextBudget
from robustclip.models.classifier import ZeroShotClassifier

AnySource = Neighbours | HotFlip | RandomWords | Characters | Table | MaskedWords
CHUNK = 32  # prompts attacked at once: their candidates are all in memory


@dataclass(frozen=True)
class TextAttack:
    """Rewrites every prompt of a classifier: of all candidates of a source within the budget, the one with the highest score.

    "exhaustive" scores the candidates of all places, or of the `width` most important ones; "greedy" goes through the places by importance
    and takes the best candidate of the first one that has any, as BERT-Attack does. A place is as important as the score of the prompt
    without what stands there. A budget of several units is spent one after another. The clean prompt is a candidate too: nothing is changed
    for the worse. Candidates that name another class are left out unless `collisions` allows them. Raises UserError for a budget that is
    not in the source's unit.
    """

    source: AnySource = field(default_factory=Neighbours)
    budget: TextBudget = field(default_factory=lambda: TextBudget(words=1))
    score: ScoreName = "cosine"
    order: Literal["exhaustive", "greedy"] = "exhaustive"
    width: int | None = None
    collisions: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "text attack: ", width=COUNT)
        if getattr(self.budget, self.source.unit) is None:
            raise UserError(f"the text source {self.source.name} changes {self.source.unit}: give its budget in {self.source.unit}")
        if isinstance(self.source, Table) and self.units > 1:
            raise UserError(f"the table {self.source.file} has candidates of clean prompts only: its budget is 1 word, not {self.units}")
        if self.score not in get_args(ScoreName) or self.order not in ("exhaustive", "greedy"):
            raise UserError(f"text attack: score {self.score!r}, order {self.order!r}; choose {', '.join(get_args(ScoreName))}")

    def by_table(self, table: Table) -> "TextAttack":
        """Return the attack with one word of a table instead, in the same scope."""
        return replace(self, source=table, budget=TextBudget(words=1, scope=self.budget.scope), width=None)

    @property
    def units(self) -> int:
        """The budget in the source's unit."""
        return int(getattr(self.budget, self.source.unit))

    @property
    def name(self) -> str:
        own = f"{self.source.name}-{self.units}{self.source.unit[0]}"
        own += f"-top{self.width}" if self.width else ""
        more = ("-name" if self.budget.scope == "class name" else "") + ("-greedy" if self.order == "greedy" else "")
        return own + more + (f"-{self.score}" if self.score != "cosine" else "") + ("+collisions" if self.collisions else "")

    def __call__(self, classifier: ZeroShotClassifier, guide: Tensor | None = None) -> Rewritten:
        """Return the rewritten prompts of all classes.

        `guide` is what a score looks at: unit features of each class's images [K,D] for "image", for "distance" raw ones of all clean
        prompts [P,D] by the model they go away from (None: by this one).
        """
        clean, now, collided = self.rewrite(classifier, range(len(classifier.class_names)), guide)
        before, after = (encode(classifier, [prompt.text for prompt in prompts]) for prompts in (clean, now))
        cosines = (before * after).sum(1).tolist()
        return Rewritten(tuple(p.text for p in clean), tuple(p.text for p in now), tuple(cosines), sum(collided) / len(collided))

    def rewrite(
        self, classifier: ZeroShotClassifier, classes: Sequence[int], guide: Tensor | None = None
    ) -> tuple[list[Prompt], list[Prompt], list[bool]]:
        """Return the prompts of some classes, class by class, rewritten, and whether each one's best candidate would have named another."""
        clean = prompts_of([classifier.class_names[c] for c in classes], classifier.templates)
        own = torch.as_tensor(classes).repeat_interleave(len(classifier.templates))
        score, names = self._score(classifier, clean, own, guide), OtherNames(classifier.class_names)
        found: list[Prompt] = []
        collided: list[bool] = []
        for first in range(0, len(clean), CHUNK):
            part = list(clean[first : first + CHUNK])

            def local(features: Tensor, which: Tensor, first: int = first) -> Tensor:
                return score(features, which + first)

            def collides(i: int, prompt: Prompt, first: int = first) -> bool:
                return names.collide(int(own[first + i]), clean[first + i], prompt)

            now, hit = self._chunk(classifier, part, local, collides)
            found, collided = found + now, collided + hit
        return clean, found, collided

    def _score(self, classifier: ZeroShotClassifier, clean: Sequence[Prompt], own: Tensor, guide: Tensor | None) -> Score:
        classes = classifier.class_embeddings.detach()
        if self.score == "margin":
            return margin(classes, own.to(classes.device))
        if self.score == "image":
            if guide is None:
                raise UserError("the text score 'image' needs images of each class to be guided by")
            return image_guided(guide, own.to(guide.device))
        if self.score == "distance" and guide is not None:
            templates = len(classifier.templates)
            return far(guide[own * templates + torch.arange(len(own)) % templates])
        return (far if self.score == "distance" else away)(self._encode(classifier, [prompt.text for prompt in clean]))

    def _encode(self, classifier: ZeroShotClassifier, texts: Sequence[str]) -> Tensor:
        """Return the features of texts that the score is of."""
        return encode(classifier, texts, unit=self.score != "distance")

    def _chunk(
        self, classifier: ZeroShotClassifier, prompts: list[Prompt], score: Score, collides: Callable[[int, Prompt], bool]
    ) -> tuple[list[Prompt], list[bool]]:
        """Spend the budget on some prompts, one unit after another."""
        hit = [False] * len(prompts)
        best = self._scores(classifier, [[prompt] for prompt in prompts], score)
        for _ in range(self.units):
            places = self._places(classifier, prompts, score)
            proposals = self.source.propose(Asked(classifier, prompts, places, self.budget.scope, score))
            by_place = [[self._affordable(found.get(place, [])) for place in some] for some, found in zip(places, proposals, strict=True)]
            if self.order == "greedy":
                flat = [next(filter(None, each), []) for each in by_place]
            else:
                flat = [[new for news in each for new in news] for each in by_place]
            values = self._scores(classifier, flat, score)
            for i, (news, each) in enumerate(zip(flat, values, strict=True)):
                better = [j for j in sorted(range(len(news)), key=lambda j: -each[j]) if each[j] > best[i][0]]
                hit[i] = hit[i] or (bool(better) and collides(i, news[better[0]]))
                # The best ones are asked until one is allowed: to ask all takes as long as to encode them.
                chosen = next((j for j in better if self.collisions or not collides(i, news[j])), None)
                if chosen is not None:
                    prompts[i], best[i] = news[chosen], [each[chosen]]
        return prompts, hit

    def _affordable(self, news: list[Prompt]) -> list[Prompt]:
        """Return the rewritings within the budget: a candidate of several words costs as many."""
        return [new for new in news if len(new.changed) <= self.units]

    def _places(self, classifier: ZeroShotClassifier, prompts: Sequence[Prompt], score: Score) -> list[list[int]]:
        """Return the places of each prompt that are tried, in the order in which they are."""
        places = [self.source.places(prompt, self.budget.scope) for prompt in prompts]
        if self.order == "exhaustive" and self.width is None:
            return places
        masked = [[self.source.masked(prompt, place, self.budget.scope) for place in some] for prompt, some in zip(prompts, places)]
        ranked = self._scores(classifier, masked, score)
        order = [sorted(range(len(some)), key=lambda j: -each[j]) for some, each in zip(places, ranked, strict=True)]
        return [[some[j] for j in each][: self.width] for some, each in zip(places, order, strict=True)]

    def _scores(self, classifier: ZeroShotClassifier, prompts: Sequence[Sequence[Prompt]], score: Score) -> list[list[float]]:
        """Return the score of every rewriting of every prompt."""
        texts = [new.text for news in prompts for new in news]
        if not texts:
            return [[] for _ in prompts]
        own = torch.tensor([i for i, news in enumerate(prompts) for _ in news])
        features = self._encode(classifier, texts)
        values = iter(score(features, own.to(features.device)).tolist())
        return [[next(values) for _ in news] for news in prompts]
