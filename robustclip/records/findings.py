"""What the checks said of a model: JSON beside its numbers, one line under the table, and whether they may be ranked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from robustclip.base import storage

WHITE_BOX = "white-box"
GREY_BOX = "grey-box: comparable, never ranked"
UNCHECKED = "unchecked"
RANKED_LEVELS = (WHITE_BOX,)  # attacks that saw exactly the pipeline that is scored


@dataclass(frozen=True)
class Finding:
    """What one check found: `passed` is None where it could not apply, and `reason` then says why; `figures` is what it measured."""

    number: str
    name: str
    level: str
    passed: bool | None
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as JSON values, in their order; a figure that is not finite, for which JSON has no number, by its name."""
    return [_finite(asdict(finding)) for finding in findings]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def path(out: str, protocol_hash: str, model_sha256: str) -> str:
    """Return where the findings on a model's numbers under a protocol lie, named after both hashes."""
    return storage.join(out, "checks", f"{storage.safe_name(protocol_hash)}-{storage.safe_name(model_sha256)}.json")


def read(out: str, protocol_hash: str, models: Mapping[str, str]) -> dict[str, list[Finding]]:
    """Return the stored findings of those models (name -> sha256 of the weights) that were checked under a protocol."""
    paths = {model: path(out, protocol_hash, sha256) for model, sha256 in models.items()}
    stored = {model: storage.read_json(where)["findings"] for model, where in paths.items() if storage.exists(where)}
    return {model: [Finding(**finding) for finding in findings] for model, findings in stored.items()}


def summary(findings: Sequence[Finding]) -> str:
    """Return one line: how many checks passed, which warn and which failed hard, each with its reason."""
    warnings, failures = (failed(findings, level) for level in ("warning", "hard"))
    skipped = [finding.number for finding in findings if finding.passed is None]
    parts = [f"{sum(finding.passed is True for finding in findings)} passed"]
    parts += [f"{len(warnings)} warning{'s' * (len(warnings) > 1)} ({reasons(warnings)})"] if warnings else []
    parts += [f"hard failures: {reasons(failures) or 'none'}"]
    parts += [f"not applicable: {', '.join(skipped)}"] if skipped else []
    return "checks: " + ", ".join(parts)


def rankable(findings: Sequence[Finding], level: str) -> tuple[bool, str]:
    """Return whether a number of this protocol level may be ranked, and why not; findings that do not exist rank nothing."""
    failures = failed(findings, "hard")
    why = [] if level in RANKED_LEVELS else [GREY_BOX]
    why += [UNCHECKED] if not findings else []
    why += [f"hard failure of check {reasons(failures)}"] if failures else []
    return not why, "; ".join(why)


def failed(findings: Sequence[Finding], level: str) -> list[Finding]:
    """Return the findings of a level ("hard" or "warning") that did not pass."""
    return [finding for finding in findings if finding.passed is False and finding.level == level]


def reasons(findings: Sequence[Finding]) -> str:
    """Return the numbers of findings with what they found."""
    return "; ".join(f"{finding.number}: {finding.reason}" for finding in findings)
