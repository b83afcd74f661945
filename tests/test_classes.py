"""Sets of few classes: what an attack aims at there, what is left out, and what an ensemble may then be called."""

from dataclasses import dataclass

import pytest

from robustclip.attacks import APGD, APGDT, PGD
from robustclip.attacks.classes import for_classes, reductions
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.base.errors import UserError
from robustclip.commands.evaluate import adapted, parser
from robustclip.evaluation.protocols import named


@dataclass(frozen=True)
class Targeted:
    """An attack with targets and no more to say about classes."""

    targets: int = 9

    @property
    def name(self):
        return "targeted" + (f"[t={self.targets}]" if self.targets != 9 else "")


LIST = (PGD(10), PGD(10, loss="margin"), APGD(100), APGD(100, loss="dlr"), APGDT(100), Targeted())
ALWAYS = ["pgd-10", "pgd-10-margin", "apgd-ce-100"]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, ALWAYS),
        (3, [*ALWAYS, "apgd-dlr-100", "targeted[t=2]"]),
        (4, [*ALWAYS, "apgd-dlr-100", "apgd-t-100[t=3]", "targeted[t=3]"]),
        (6, [*ALWAYS, "apgd-dlr-100", "apgd-t-100[t=5]", "targeted[t=5]"]),
        (9, [*ALWAYS, "apgd-dlr-100", "apgd-t-100[t=8]", "targeted[t=8]"]),
        (10, [*ALWAYS, "apgd-dlr-100", "apgd-t-100", "targeted"]),
        (1000, [*ALWAYS, "apgd-dlr-100", "apgd-t-100", "targeted"]),
    ],
)
def test_attacks_run_as_they_are_defined_on_so_many_classes(classes, expected):
    found = for_classes(LIST, classes)
    assert [attack.name for attack in found.values()] == expected
    assert list(found) == [attack.name for attack in LIST if attack.name.split("[")[0] in [name.split("[")[0] for name in expected]]
    assert all(getattr(attack, "targets", 1) <= classes - 1 for attack in found.values())


def test_an_attack_that_aims_at_fewer_keeps_its_other_settings():
    assert for_classes((APGDT(7, targets=5, restarts=3),), 4) == {"apgd-t-7x3[t=5]": APGDT(7, targets=3, restarts=3)}
    assert for_classes((APGDT(7, targets=2),), 4) == {"apgd-t-7[t=2]": APGDT(7, targets=2)}


def test_what_is_reduced_is_said():
    assert reductions(LIST, 10) == {}
    assert reductions(LIST, 4) == {"apgd-t-100": "apgd-t-100[t=3]", "targeted": "targeted[t=3]"}
    assert reductions(LIST, 2) == {"apgd-dlr-100": None, "apgd-t-100": None, "targeted": None}


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match="none of apgd-t-100, apgd-dlr-100 is defined on 2 classes"):
        for_classes((APGDT(100), APGD(100, loss="dlr")), 2)


def test_the_published_ensembles():
    ce, targeted, fab, square = ENSEMBLES["autoattack"]
    assert (ce, targeted) == (APGD(100), APGDT(100, targets=9))
    assert (fab.steps, fab.targets, fab.restarts, square.queries, square.restarts) == (100, 9, 1, 5000, 1)
    assert not square.rescale
    assert ENSEMBLES["fare"] == (APGD(100, restarts=5), APGDT(100, targets=9))
    assert ENSEMBLES["cw"] == (PGD(100, loss="margin"),)


def test_the_command_line_expands_ensembles():
    args = parser().parse_args(["model", "--attacks", "pgd-10", "fare", "pgd-10"])
    assert adapted(named("smoke"), args).attacks == (PGD(10), APGD(100, restarts=5), APGDT(100, targets=9))
    with pytest.raises(UserError, match="did you mean autoattack"):
        adapted(named("smoke"), parser().parse_args(["model", "--attacks", "autoatack"]))
