"""What is done with findings: JSON beside the numbers, one line under the table, and whether a number may be ranked."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from robustclip.checks.base import WHITE_BOX, Finding

GREY_BOX = "grey-box: comparable, never ranked"
RANKED_LEVELS = (WHITE_BOX,)  # attacks that saw exactly the pipeline that is scored


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as JSON values, in their order."""
    return [asdict(finding) for finding in findings]


def summary(findings: Sequence[Finding]) -> str:
    """Return one line: how many checks passed, which warn and which failed hard, each with its reason."""
    warnings, failures = (_failed(findings, level) for level in ("warning", "hard"))
    skipped = [finding.number for finding in findings if finding.passed is None]
    parts = [f"{sum(finding.passed is True for finding in findings)} passed"]
    parts += [f"{len(warnings)} warning{'s' * (len(warnings) > 1)} ({_reasons(warnings)})"] if warnings else []
    parts += [f"hard failures: {_reasons(failures) or 'none'}"]
    parts += [f"not applicable: {', '.join(skipped)}"] if skipped else []
    return "checks: " + ", ".join(parts)


def rankable(findings: Sequence[Finding], level: str) -> tuple[bool, str]:
    """Return whether a number of this protocol level may be ranked, and why not; findings that do not exist rank nothing."""
    failures = _failed(findings, "hard")
    reasons = [] if level in RANKED_LEVELS else [GREY_BOX]
    reasons += ["unchecked"] if not findings else []
    reasons += [f"hard failure of check {_reasons(failures)}"] if failures else []
    return not reasons, "; ".join(reasons)


def _failed(findings: Sequence[Finding], level: str) -> list[Finding]:
    return [finding for finding in findings if finding.passed is False and finding.level == level]


def _reasons(findings: Sequence[Finding]) -> str:
    return "; ".join(f"{finding.number}: {finding.reason}" for finding in findings)
