"""Was the effort enough and was it really made: convergence, silent successes, passes counted against the settings."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.attacks import Attack
from robustclip.base import values
from robustclip.base.errors import UserError
from robustclip.evaluation.checks.ball import declared, has
from robustclip.evaluation.checks.base import Run, Subject, Verdict, share, verdict
from robustclip.evaluation.checks.strength import rise
from robustclip.evaluation.checks.watch import watching

FLAT = 0.05  # of the loss gained in all, in the last tenth of the passes; at a constant pace it is 0.1


def converged(subject: Subject) -> Verdict:
    """Check 8: twice the steps break no more, the loss is flat at the end, the start is not the best, no success is lost (Pintor 2022)."""
    faults: list[str | None] = []
    figures: dict[str, Any] = {}
    for ball in subject.protocol.balls():
        for attack in subject.protocol.attacks:
            where, run = f"{attack.name} at {ball}", subject.run(attack, ball)
            lost = int((run.watch.fooled & run.right).sum())
            faults.append(f"{where} fooled the model on {lost} images it returned unharmed" if lost else None)
            figures[f"{where}: silent successes"] = lost
            if has(attack, "steps"):
                longer = subject.run(replace(attack, steps=2 * attack.steps), ball)  # type: ignore[type-var, attr-defined]
                faults.append(rise((f"{where} and twice the steps", longer), (f"{where} alone", run)))
                late, stuck = pace(run, declared(attack)["steps"] * declared(attack).get("restarts", 1))
                figures |= {f"{where}: late share of the gain": late, f"{where}: best at the start": stuck}
                figures |= {f"{where}: right": share(run.right), f"{where}, twice the steps: right": share(longer.right)}
                faults.append(f"{where} still gains {late:.0%} of its loss in the last tenth" if late > FLAT else None)
                faults.append(f"{where} never beats its start on {stuck:.0%} of the surviving images" if stuck > 0.5 else None)
    return verdict(filter(None, faults), "more steps would change nothing", figures)


def pace(run: Run, steps: int) -> tuple[float, float]:
    """Return, over the images that survive: the mean share of the loss gained in the last tenth, and how many were best at the start.

    An attack that made fewer passes than `steps` ended because it repeated itself, so its loss would have stayed where it was.
    """
    late, stuck = [], []
    for seen in [run.watch.losses[i] for i in run.right.nonzero()[:, 0].tolist()]:
        path = [*seen, *([max(seen)] * (steps - len(seen)) if seen else [])]
        early = max(path[: max(1, int(0.9 * len(path)))], default=0.0)
        gain = max(path, default=0.0) - path[0] if path else 0.0
        late.append((max(path) - early) / gain if gain > 0 else 0.0)
        stuck.append(gain <= 0)
    return (sum(late) / len(late), sum(stuck) / len(stuck)) if late else (0.0, 0.0)


class Unbreakable(nn.Module):
    """Classes of which 0 always wins, with a gradient, which never answers twice the same: an attack on it spends every pass it has."""

    def __init__(self, classes: int):
        super().__init__()
        self.classes, self.asked = classes, 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        waves = [(images * (1 + i)).flatten(1).sin().mean(1) for i in range(self.classes)]
        return torch.stack([9 + waves[0], *waves[1:]], 1) * (1 + 0.001 * (self.asked % 101))


def settings_are_used(subject: Subject) -> Verdict:
    """Check 9: an attack makes the passes its settings declare, counted on a model nothing breaks, and refuses unknown settings."""
    images, ids, ball = 0.3 + 0.4 * subject.off_grid[:2], subject.ids[:2], subject.protocol.balls()[-1]
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    faults: list[str] = []
    figures: dict[str, Any] = {}
    for attack in subject.protocol.attacks:
        faults += accepts_anything(attack)
        asked = declared(attack)
        steps, goals = asked.get("steps", asked.get("queries")), asked.get("targets") or 1
        if steps is None:
            continue
        runs = asked.get("restarts", 1) * asked.get("eot", 1) * goals
        model = Unbreakable(max(10, goals + 1))
        with watching(model, images, labels) as watch:
            example = attack(model, images, labels, ids, ball, subject.protocol.seed, subject.protocol.micro_batch)
        figures[attack.name] = {"declared": steps * runs, "passes": watch.passes}
        # Twice as many at most: DI scores an image beside its diverse form, FAB the point that it moved back.
        if not all(steps * runs <= passes <= 2 * (steps + 1) * runs + 1 for passes in watch.passes):
            faults.append(f"{attack.name} makes {watch.passes[0]} passes for {steps} steps x {runs} runs")
        if example.trace is not None and example.trace.forwards.tolist() != watch.passes:
            faults.append(f"{attack.name} says it made {example.trace.forwards.tolist()} passes, it made {watch.passes}")
    return verdict(faults, "every declared step and restart was made, no unknown setting is taken", figures)


def accepts_anything(attack: Attack) -> list[str]:
    """Return a fault where a misspelt setting of the attack would be accepted."""
    misspelt = {**values.to_json(attack), "stepz": 1}
    try:
        values.from_json(type(attack), misspelt)
    except UserError:
        return []
    return [f"{attack.name} accepts the misspelt setting 'stepz'"]
