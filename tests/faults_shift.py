"""A prompt shift as a subject of the checks, and the fault planted in it: an attack that saw the prompts which are scored."""

from dataclasses import replace

from probes import NAMES, changed, rows_of

from robustclip.attacks import PGD
from robustclip.attacks.shift import Shifted
from robustclip.evaluation.protocols import Resolved
from robustclip.records import rows as records

SEEN = ("the word {}, upside down!",)


def shifted_subject(subject):
    """Return a subject whose protocol has a shifted attack, and the rows of it."""
    protocol = replace(subject.protocol, attacks=(*subject.protocol.attacks, Shifted(SEEN, PGD(10))), independent=True)
    resolved = Resolved(protocol, subject.resolved.sets)
    subject.classifier.under = lambda texts: subject.model.classifier(NAMES, texts)
    rows = rows_of(subject.classifier, subject.images, subject.labels, subject.ids, resolved, subject.name, subject.model_sha256)
    return changed(subject, resolved=resolved, records=records.table(rows))


def sees_what_is_scored(subject, patch):
    honest = Shifted.__call__

    def planted(self, classifier, *met):
        return replace(self.attack(classifier, *met), seen=honest(self, classifier, *met).seen)

    patch.setattr(Shifted, "__call__", planted)
    return shifted_subject(subject)


FAULTS = [("18", "a prompt shift that saw the scored prompts", sees_what_is_scored)]
