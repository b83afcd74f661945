"""What the comparison on photographs says that it will take: every piece, by the work that it does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import photo_plan
import photographs
import pytest
from photo_runs import METHODS, PROBED
from photo_study import Study
from photos import archives, study_on

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.forecast import duration
from robustclip.training.forecast import Measured


@pytest.fixture
def study(tmp_path: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Return a study on the miniatures, on a cluster of two CPUs that is not there."""
    monkeypatch.setattr(photo_plan.cluster, "total", lambda: (2.0, 0.0))
    monkeypatch.setattr(photo_plan.cluster, "check_fits", lambda cpus, gpus: None)
    (tmp_path / "data").mkdir()
    return study_on(archives(tmp_path / "data"), str(tmp_path / "out"), make_model())


def test_a_plan_counts_every_piece_and_their_sum(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training a second, two at once; every model and protocol ten, but those that adapt twenty; a sweep a hundred."""
    measured: list[str] = []
    monkeypatch.setattr(photo_plan.training, "measure", lambda job, share: (measured.append(job.key), Measured())[-1])
    monkeypatch.setattr(photo_plan.training, "forecast", lambda job, share, found: SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(photo_plan, "attacking", lambda study, protocol, names=(): 20.0 if names else 10.0)
    monkeypatch.setattr(photo_plan, "trend", lambda study, space: 100.0)
    monkeypatch.setattr(photo_plan, "counting", lambda study: 7.0)
    found = photo_plan.pieces(study)
    assert [*found] == [name for name in photographs.PIECES if name not in ("sets", "clip")]
    rows = 2 * len(METHODS)
    assert found["rates"] == (3 * rows + 3 * 2) / 2
    assert found["prompt"] == rows / 2 + (1 + rows) * 20.0
    assert found["tower"] == found["prompt"] + 2 * 2 / 2 + 3 * 20.0
    assert (found["zero-shot"], found["shift"], found["epsilon"], found["prompts"]) == (20.0, 50.0, 100.0, 97.0)
    assert found["ladder"] == 11 / 2 + 9 * 10.0 + 9 / 5 * 20.0
    assert len(measured) == len(set(measured)) <= 2 * (len(METHODS) - 1) + len(PROBED)  # SAFT's steps are TeCoA's
    *lines, total = photo_plan.plan(study)
    assert len(lines) == len(found)
    assert total == f"in all, after the CLIP: at most {duration(sum(found.values()))}"
    storage.delete(study.clip)
    with pytest.raises(UserError, match="run the piece `clip` first"):
        photo_plan.plan(study)


def test_what_is_forecast_is_what_the_pieces_do(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """That its protocols resolve on the sets, and that a sweep's changes go into its space."""
    monkeypatch.setattr(photo_plan.attacks, "measure", lambda name, resolved: photo_plan.attacks.Cost(1.0, 1.0))
    one = photo_plan.attacking(study, photo_plan.shifted(study))
    assert one == 2 * 3 * (1 + 2 * (20 + 2) + 2 * (20 + 3)) / 2  # two sets of three images: clean, two radii, with and without a shift
    asked: list[Any] = []
    monkeypatch.setattr(photo_plan.sweeps, "forecast", lambda *given: (asked.append(given), SimpleNamespace(seconds=1.0))[-1])
    assert photo_plan.trend(study, "train_size") == 1.0
    space, config, protocol, *_ = asked[0]
    assert (space.fixed["data.n"], config.optim.warmup, config.model, protocol.n) == (None, 3, study.clip, 3)
