"""LEAF beside its published code: our search among its draws, our learner on what that finds, then every text one edit away."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from golden_case import Case, Method
from golden_peers import Found, Watched, number, of
from torch import Tensor

from robustclip.attacks.text.scores import away, far
from robustclip.attacks.text.sources import Asked, Characters, Proposals
from robustclip.attacks.text.vocabulary import encode
from robustclip.attacks.text.words import OtherNames, Prompt, Scope, prompts_of
from robustclip.defenses import LEAF
from robustclip.training.recipes import RECIPES


@dataclass(frozen=True)
class Drawn:
    """A text source of given draws: places of each prompt (2i the gap before character i, 2i+1 that character) and letters for one."""

    places_of: Mapping[str, Sequence[int]]
    letters_of: Mapping[str, Sequence[str]]
    tried: dict[str, list[str]] = field(default_factory=dict)
    name = "drawn"
    unit = "edits"

    def places(self, prompt: Prompt, scope: Scope) -> Sequence[int]:
        return self.places_of[prompt.text]

    def masked(self, prompt: Prompt, place: int, scope: Scope) -> Prompt:
        return Characters().masked(prompt, place // 2, scope) if place % 2 else self.edited(prompt, place, " ")

    def propose(self, asked: Asked) -> Proposals:
        found = []
        for prompt, (place,) in zip(asked.prompts, asked.places, strict=True):
            found.append({place: [self.edited(prompt, place, letter) for letter in self.letters_of[prompt.text]]})
            self.tried[prompt.text] = [new.text for new in found[-1][place]]
        return found

    def edited(self, prompt: Prompt, place: int, letter: str) -> Prompt:
        """Return the prompt with a letter at a place, or deleted there: the first or the last one of that edit."""
        return list(prompt.edits("any word", place // 2, (letter,)))[0 if place % 2 else -1]


class Rewrites:
    """The case of LEAF as its parts: rows of its texts, and the draws of some prompts."""

    def __init__(self, case: Case):
        self.case, self.row = case, {text: row for row, text in enumerate(case.settings["texts"])}

    def rows(self, texts: Sequence[Sequence[str]]) -> Tensor:
        return torch.tensor([[self.row[text] for text in some] for some in texts])

    def drawn(self, clean: Sequence[str], places: Tensor, characters: Tensor) -> Drawn:
        alphabet = ["", *self.case.settings["alphabet"][1:]]
        letters = [[alphabet[c] for c in some] for some in characters.tolist()]
        return Drawn(dict(zip(clean, places.tolist(), strict=True)), dict(zip(clean, letters, strict=True)))

    def learner(self, weight_decay: float | None = None) -> Watched:
        """Return the learner of the embedded world's recipe with this case's rates, and another weight decay if given."""
        config, said = RECIPES["demo-leaf"].config, self.case.settings
        optim = of(config.optim, said["prompts_per_step"], lr=said["optimizer"]["lr"], warmup=said["schedule"]["warmup"])
        optim = replace(optim, weight_decay=config.optim.weight_decay if weight_decay is None else weight_decay)
        config = replace(config, defense=replace(config.defense, refresh=1), optim=optim, templates=(said["template"],))
        return Watched(self.case, config, said["schedule"]["steps"])

    def steps(self, learner: Watched) -> Iterator[Found]:
        """Take the steps of the case, and yield what each does."""
        arrays, order = self.case.arrays, self.case.settings["order"]
        start = learner.now()
        for labels, places, characters in zip(arrays["labels"], arrays["draw_places"], arrays["draw_characters"], strict=True):
            clean = [learner.student.texts[label] for label in labels]
            drawn = self.drawn(clean, places, characters)
            learner.rewriting.attack = replace(LEAF().text, source=drawn, width=1, collisions=True)
            learner.accumulate(torch.zeros(len(labels), 16, 16, 3), labels, clean)
            prompts = prompts_of([learner.student.class_names[label] for label in labels], learner.student.templates)
            first = [[drawn.masked(p, place, "any word").text for place in drawn.places_of[p.text]] for p in prompts]
            second = [drawn.tried[p.text] for p in prompts]
            apart = [self.apart(learner, some, labels) for some in (first, second)]
            took = learner.update()
            now, gradients = learner.now(), learner.gradients
            yield {
                "first": self.rows(first),
                "second": self.rows(second),
                "distance_first": apart[0],
                "distance_second": apart[1],
                "rewritten": self.rows([[learner.rewritten[label] for label in labels]])[0],
                "loss": number(took["loss"]),
                "lr": number(took["lr"]),
                "gradient": torch.cat([gradients[name].flatten() for name in order])[arrays["places"]],
                "parameters": torch.cat([now[name].flatten() for name in order])[arrays["places"]],
                "gradient_norm": torch.stack([gradients[name].norm() for name in order]),
                "moved_norm": torch.stack([(now[name] - start[name]).norm() for name in order]),
            }

    def apart(self, learner: Watched, texts: Sequence[Sequence[str]], labels: Tensor) -> Tensor:
        """Return how far texts, as many a prompt, are from the original's clean prompts: the score of the text attack."""
        score, many = far(learner.rewriting.guide), len(texts[0])
        found = score(encode(learner.student, [text for some in texts for text in some], unit=False), labels.repeat_interleave(many))
        return found.view(-1, many)


def leaf(case: Case) -> Found:
    """Return what the learner makes of the draws, and what the exhaustive searches find after its last step."""
    parts = Rewrites(case)
    learner, decayed = parts.learner(), parts.learner(case.settings["optimizer"]["weight_decay_of_decayed"])
    plain, with_decay = (list(parts.steps(each)) for each in (learner, decayed))
    found = {name: torch.stack([step[name] for step in plain]) for name in plain[0]}
    found |= {"loss_decayed": torch.stack([step["loss"] for step in with_decay]), "parameters_decayed_last": with_decay[-1]["parameters"]}
    return found | searched(parts, learner)


def searched(parts: Rewrites, learner: Watched) -> Found:
    """Return what all one-edit rewritings are and score, and what is chosen of them and of given draws."""
    student, guide, arrays, attack = learner.student, learner.rewriting.guide, parts.case.arrays, LEAF().text
    clean, source, names = prompts_of(student.class_names, student.templates), Characters(), OtherNames(student.class_names)
    news = source.propose(Asked(student, clean, [source.places(p, "any word") for p in clean], "any word", far(guide)))
    edited = [{p.text: p} | {new.text: new for some in found.values() for new in some} for p, found in zip(clean, news, strict=True)]
    order = [sorted(some) for some in edited]
    texts, owner = [text for some in order for text in some], torch.tensor([i for i, some in enumerate(order) for _ in some])
    drawn = parts.drawn(student.texts, arrays["constrained.draw_places"], arrays["constrained.draw_characters"])
    chosen = {
        "best_by_distance": replace(attack, width=None, collisions=True)(student, guide),
        "best_by_cosine": replace(attack, width=None, collisions=True, score="cosine")(student),
        "constrained.rewritten": replace(attack, width=1, source=drawn)(student, guide),
    }
    return {
        "original_features": guide,
        "candidates": parts.rows([texts])[0],
        "distance_all": far(guide)(encode(student, texts, unit=False), owner),
        "cosine_all": 1 - away(encode(student, student.texts))(encode(student, texts), owner),
        "valid_all": torch.tensor([not names.collide(int(i), clean[i], edited[i][text]) for i, text in zip(owner, texts)]),
        **{name: parts.rows([rewritten.texts])[0] for name, rewritten in chosen.items()},
    }


METHODS = [
    Method(
        "leaf",
        "LEAF",
        leaf,
        equal="3 training steps on its draws: texts, distances, choices, loss, gradients, weights, rates; then all texts one edit away",
        differs={
            "loss_decayed": "weight decay acts on all that trains; there on matrices only",
            "parameters_decayed_last": "weight decay acts on all that trains; there on matrices only",
            "valid_all": "a text may not name another class; there it must have fewer known English words than the clean one",
            "constrained.rewritten": "the best of the draws that name no other class; there of those with fewer known English words",
        },
        missing={
            "constrained.first": "draws that its constraint forbids become the clean prompt; here there are no draws, nor that constraint",
            "constrained.second": "draws that its constraint forbids become the clean prompt; here there are no draws, nor that constraint",
        },
        besides=[
            "Nothing is drawn: all letters are tried at the two places that matter most.",
            "Nothing is taken that is nearer than the clean prompt; there the best of the draws is, whatever it is.",
            "26 letters and a blank; there 95 printable characters.",
            "Prompts of the batch's classes train; there captions.",
        ],
    ),
]
