"""The 22 checks and further guards of an honest robust accuracy, run on a probe subset of one cell and written beside its numbers."""

from collections.abc import Callable

from robustclip.base.precision import full_precision
from robustclip.evaluation.checks import ball, data, effort, gradients, graph, provenance, state, strength, text
from robustclip.evaluation.checks.base import Subject, Verdict
from robustclip.records.findings import Finding

# number -> (title, level, function): 1 to 22 as in the table of the rules, then the guards.
CHECKS: dict[str, tuple[str, str, Callable[[Subject], Verdict]]] = {
    "1": ("nothing at eps 0", "hard", ball.nothing_at_zero),
    "2": ("inside the ball", "hard", ball.inside_the_ball),
    "3": ("falls with effort", "warning", strength.falls_with_effort),
    "4": ("stronger is stronger", "hard", strength.stronger_is_stronger),
    "5": ("no black box wins", "warning", strength.no_black_box_wins),
    "6": ("gradients are there", "warning", gradients.gradients_are_there),
    "7": ("full precision", "hard", gradients.full_precision),
    "8": ("converged", "warning", effort.converged),
    "9": ("settings are used", "warning", effort.settings_are_used),
    "10": ("deterministic", "warning", state.deterministic),
    "11": ("defence in the graph", "hard", graph.defence_in_the_graph),
    "12": ("no memory", "hard", state.no_memory),
    "13": ("alone or together", "hard", state.alone_or_together),
    "14": ("preprocessing inside", "warning", graph.preprocessing_inside),
    "15": ("enough classes", "hard", data.enough_classes),
    "16": ("every row visited", "hard", data.every_row_visited),
    "17": ("worst case per image", "warning", data.worst_case_per_image),
    "18": ("same prompts", "warning", graph.same_prompts),
    "19": ("entry rule", "warning", graph.entry_rule),
    "20": ("without the filter", "warning", gradients.without_the_filter),
    "21": ("selection apart", "warning", data.selection_apart),
    "22": ("keys change", "warning", provenance.keys_change),
    "G1": ("no parameter gradients", "hard", state.no_parameter_gradients),
    "G2": ("the checkpoint's prompts", "hard", state.prompts_of_the_checkpoint),
    "G3": ("right activation", "hard", provenance.right_activation),
    "G4": ("no fallback model", "hard", provenance.no_fallback),
    "G5": ("eval mode", "hard", state.eval_mode),
    "G6": ("finite gradients", "hard", gradients.finite_gradients),
    "G7": ("same ids", "hard", data.same_ids),
    "G8": ("names travel", "warning", provenance.names_travel),
    "G9": ("baseline beside", "warning", provenance.baseline_beside),
    "G10": ("prompts in budget", "hard", text.prompts_in_budget),
    "G11": ("classes told apart", "hard", data.classes_told_apart),
    "G12": ("8-bit values move", "hard", ball.moves_stored_values),
}


@full_precision()
def run_check(subject: Subject, number: str) -> Finding:
    """Return the finding of one of the CHECKS; one that raises is a hard failure with the exception's line."""
    name, level, check = CHECKS[number]
    try:
        passed, reason, figures = check(subject)
    except Exception as error:  # whatever it was, the check did not pass, and the others still have something to say
        line = " ".join(str(error).split())[:200]
        return Finding(number, name, "hard", False, f"raised {type(error).__name__}: {line}")
    return Finding(number, name, level, passed, reason, figures)


def run_checks(subject: Subject) -> list[Finding]:
    """Return the findings of all CHECKS on a subject, in their order."""
    return [run_check(subject, number) for number in CHECKS]


__all__ = ["CHECKS", "Subject", "Verdict", "run_check", "run_checks"]
