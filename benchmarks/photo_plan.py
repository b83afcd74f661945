"""What the pieces of benchmarks/photographs.py will take on this machine where nothing of them is there yet, by a few measured passes.

The first micro-batches of every method are measured; plain CLIP stands for all models without a test-time defence, TeCoA on prompts for the
prompts of the ladder. Attacks are counted as if no image broke; without Ray's starts and the checks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import class_counts
from photo_runs import METHODS, PROBE, PROBED, PROMPT, PROMPTED, RATES, ROWS, SHORT, TOWER
from photo_sets import SCORED, described
from photo_study import DESCRIBED, INSIDE, PROTOCOL, SHIFTED, SWEEPS, Study
from test_time import STATIC, TUNED, VIEWS

from robustclip import names as models
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.shift import Shifted
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.forecast import duration
from robustclip.evaluation import forecast as attacks
from robustclip.evaluation import protocols
from robustclip.evaluation.protocols import Protocol
from robustclip.names import written
from robustclip.runtime import cluster
from robustclip.sweeps import forecast as sweeps
from robustclip.sweeps.spaces import FOLDER, first_config, load_space, rooted
from robustclip.test_time import DBD, RTPT, TPT, TTC, ViewEnsemble
from robustclip.training import forecast as training
from robustclip.training.job import prepare

DEFENDED = (ViewEnsemble(**VIEWS), TPT(**VIEWS), RTPT(**VIEWS), TTC(), DBD())
ADAPTING = len(DEFENDED) + 1 + len(TUNED)  # rows of the ladder under a test-time defence: PromptAlign and TAPT beside these
PROMPTS = len(STATIC) + len(TUNED) + 2  # trainings of the ladder: static prompts, clean ones, TeCoA and APT on it
UNSEEN = 1  # a seed of which there are no records
RATE = 1e-3  # any: no time depends on it
DRAWS = 10  # of class counts


def plan(study: Study) -> list[str]:
    """Return a line a piece, and what all of them take; raises UserError where the CLIP is not there on which they are forecast."""
    if not storage.exists(storage.join(study.clip, "config.json")):
        raise UserError("the other pieces are forecast on the CLIP: run the piece `clip` first")
    found = pieces(study)
    lines = [f"{name}: at most {duration(value)}" for name, value in found.items()]
    return [*lines, f"in all, after the CLIP: at most {duration(sum(found.values()))}"]


def pieces(study: Study) -> dict[str, float]:
    """Return the seconds of every piece that follows the CLIP's, the most that it may take."""
    trainings, seeds, compared = Trainings(study), len(study.seeds), replace(PROTOCOL, n=study.n)
    outside, inside = attacking(study, compared), attacking(study, replace(compared, sets=(INSIDE,)))
    probed = sum(attacking(study, replace(compared, sets=(name,))) for name in PROBED)
    found = {"zero-shot": sum(attacking(study, each) for each in study.known.values())}
    found["rates"] = sum(len(RATES[PROBE if row[0] == PROBE else row[1]]) * trainings.seconds(*row, **SHORT) for row in ROWS)
    for part in (TOWER, PROMPT):
        trained = sum(trainings.seconds(method, part) for method in METHODS)
        found[part] = seeds * trained + (1 + seeds * len(METHODS)) * (outside + inside)
    found[TOWER] += seeds * sum(trainings.seconds(PROBE, name) for name in PROBED) + (1 + seeds) * probed
    found["shift"] = (1 + seeds * len(SHIFTED)) * attacking(study, shifted(study))
    found |= {space: trend(study, space) for space in SWEEPS}
    plain, adapting = attacking(study, study.ladder()), attacking(study, study.ladder(), [written(each, study.clip) for each in DEFENDED])
    static = (3 + len(STATIC)) * plain  # CLIP, TeCoA, APT on it, and prompts
    found["ladder"] = PROMPTS * trainings.seconds("TeCoA", PROMPT, **SHORT) + static + ADAPTING / len(DEFENDED) * adapting
    found["prompts"] = (1 + len(PROMPTED) * seeds) * attacking(study, study.multimodal()) + counting(study)
    return found


class Trainings:
    """The trainings of the comparison, as many at once as fit; each kind is measured once."""

    def __init__(self, study: Study):
        self.study, self.at_once = study, cluster.fitting_trials(len(ROWS), 1)
        self.share = cluster.divide(self.at_once, 1)
        self.measured: dict[str, training.Measured] = {}

    def seconds(self, method: str, part: str, **changes: Any) -> float:
        """Return the seconds that one training of a method adds."""
        job = prepare(self.study.runs.config(method, part, RATE, **changes), self.study.out)
        if (kind := training.kind(job)) not in self.measured:
            self.measured[kind] = cluster.measured(training.measure, job, self.share)
        return training.forecast(job, self.share, self.measured[kind]).seconds / self.at_once


def attacking(study: Study, protocol: Protocol, names: Sequence[str] = ()) -> float:
    """Return the most seconds of attacking models, plain CLIP if none is named, by a protocol of which nothing is there."""
    actors, gpus = cluster.fitting_actors()
    resolved = protocols.resolve(replace(protocol, seed=UNSEEN), study.out)
    return cluster.measured(attacks.forecast, names or [study.clip], resolved, study.out, actors, gpus).seconds


def shifted(study: Study) -> Protocol:
    """Return what the piece `shift` attacks by: under names, and under descriptions."""
    (attack,) = PROTOCOL.attacks
    seen = Shifted(described(study.out, *DESCRIBED), attack)
    return replace(PROTOCOL, sets=DESCRIBED, attacks=(attack, seen), n=study.n, independent=True)


def trend(study: Study, space: str) -> float:
    """Return the most seconds of a sweep."""
    asked = load_space(FOLDER / f"{space}.py")
    asked = rooted(replace(asked, fixed={**asked.fixed, **study.trend(space, RATE), "model": study.clip}))
    protocol = protocols.named("demo").changed(sets=SCORED, n=study.n, eps=PROTOCOL.eps, seed=UNSEEN)
    return sweeps.forecast(asked, first_config(asked), protocol, study.out, 1, None, 1).seconds


def counting(study: Study) -> float:
    """Return about what prompts against the number of classes take."""
    model = models.load(study.clip)
    return class_counts.ahead(model, class_counts.pictures_of(model, "tiny-all", study.out), TEXTS["clip_knn"], DRAWS)
