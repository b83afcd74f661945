"""The command that measures claims: from runs and records to verdicts and a page, without Ray where nothing is missing; and its plan."""

import shutil
import sys
from pathlib import Path

import claiming
import every_preset
import pytest

from robustclip.base.errors import UserError
from robustclip.commands import prepare, reproduce
from robustclip.evaluation.presets import PRESETS
from robustclip.reproduction import ledger, page, running, worlds
from robustclip.reproduction.needs import Laid
from robustclip.reproduction.rules import REFUTED, SHOWN, UNDECIDED
from robustclip.runtime import cluster
from robustclip.sweeps import tuning

CLAIMS = Path(__file__).resolve().parent.parent / "claims"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        pytest.fail("nothing is missing, and Ray was started")

    monkeypatch.setattr(cluster, "connect", connect)


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let forecasts see a cluster of two CPUs that is not there."""
    monkeypatch.setattr(cluster, "connect", lambda: None)
    for module in (cluster, tuning):
        monkeypatch.setattr(module, "total", lambda: (2.0, 0.0))
    monkeypatch.setattr(cluster, "check_fits", lambda cpus, gpus: None)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["robustclip reproduce", *map(str, words)])
    reproduce.run()


def laid(folder: Path, out: Path) -> list[Laid]:
    """Return the studies of a ledger in miniature, of one seed."""
    world = worlds.read(str(folder), "rendered")
    found, faults = running.lay(page.named(str(folder), "paper"), world, [0], str(out))
    assert faults == {}
    return list(found.values())


def test_from_runs_and_records_to_verdicts_and_a_page(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = claiming.ledger(tmp_path, "tiny-vit8"), tmp_path / "out"  # which falls; a random CLIP has nothing to lose
    for study in laid(folder, out):
        claiming.train(study)
    small, tiny = laid(folder, out)
    assert (small.sweeps(), tiny.sweeps()) == ([], [])
    for study in (small, tiny):
        claiming.attack(study)
    words = ("--paper", "paper", "--world", "rendered", "--seeds", 0, "--out", out, "--claims", folder)
    command(monkeypatch, *words)

    paper = ledger.read(str(folder / "paper.toml"))
    found = paper.results["rendered"]
    assert {name: each.verdict for name, each in found.items()} == {
        "falls": SHOWN, "rises": REFUTED, "tiny": UNDECIDED, "trained": SHOWN,
    }  # fmt: skip
    assert found["tiny"].why == "16 images, of 100 that it takes"
    assert (found["falls"].seeds, found["trained"].seeds) == ((), (0,))
    assert found["falls"].parts[0].n == 120
    assert found["falls"].parts[0].estimate == -found["rises"].parts[0].estimate > 0
    said = (tmp_path / "docs" / "claims.md").read_text()
    assert "not yet: this world has no study 'other'" in said
    assert f"**shown**: +{found['falls'].parts[0].estimate:.1f}" in said
    assert said == page.page(str(folder))
    assert str(tmp_path / "docs" / "claims.md") in capsys.readouterr().out

    before = (folder / "paper.toml").read_text()
    assert before.startswith(claiming.HAND)
    command(monkeypatch, *words)
    assert (folder / "paper.toml").read_text() == before
    claiming.attack(small, fault="11")
    command(monkeypatch, *words)
    withheld = ledger.read(str(folder / "paper.toml")).results["rendered"]["falls"]
    assert (withheld.verdict, withheld.why) == (UNDECIDED, "clip failed check 11: planted")


def test_a_plan_says_what_is_missing_and_writes_no_verdict(
    tmp_path: Path, tiny_checkpoint: str, two_cpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = claiming.ledger(tmp_path, tiny_checkpoint), tmp_path / "out"
    command(monkeypatch, "--paper", "paper", "--world", "rendered", "--seeds", 0, 1, "--out", out, "--claims", folder, "--plan")
    said = capsys.readouterr().out
    assert "5 claims of A paper in the rendered world: 4 to measure" in said
    assert "not yet  nowhere: this world has no study 'other'" in said
    assert "training of tecoa of study small, seeds 0, 1 (2 trainings missing that claims need)\n  trainings   2, 2 at a time" in said
    assert "training of tecoa of study tiny" not in said  # whose claims ask of CLIP alone
    assert "evaluation of tiny" in said
    assert "  later       once trained, 2 models, 2 evaluators: about " in said
    assert "in all, without Ray's starts and the checks: about" in said
    assert (folder / "paper.toml").read_text() == claiming.HAND
    assert not (out / "runs").exists()


def test_a_world_that_is_not_there_yet_says_what_is_missing(
    tmp_path: Path, tiny_checkpoint: str, no_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = claiming.ledger(tmp_path, tiny_checkpoint)
    words = ("--paper", "paper", "--world", "photographs", "--out", tmp_path / "out", "--claims", folder)
    command(monkeypatch, *words, "--plan")
    assert "not yet  falls: nobody has any" in capsys.readouterr().out
    command(monkeypatch, *words)
    assert (folder / "paper.toml").read_text() == claiming.HAND


def test_published_sets_that_are_not_prepared_are_named(
    tmp_path: Path, two_cpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--paper", "tecoa", "--world", "clip", "--out", tmp_path / "out")
    command(monkeypatch, *words, "--plan")
    said = capsys.readouterr().out
    assert "cannot start  protocol 'tecoa-16' needs 16 data sets" in said
    assert "no data set 'imagenet'" in said


def test_real_clip_is_planned_to_the_end_on_miniatures(
    tmp_path: Path, tiny_checkpoint: str, two_cpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TeCoA's 16 sets in miniature, its recipes on a tiny CLIP and few rendered images: every study has its forecast."""
    shutil.copytree(CLAIMS, tmp_path / "claims")
    path = tmp_path / "claims" / "worlds" / "clip.toml"
    cut = every_preset.cut(PRESETS["tecoa-16"], 10, 2)
    every_preset.lay_out(tmp_path / "sets", cut, 10)
    out = tmp_path / "out"
    every_preset.command(prepare.run, "--suite", "tecoa-16", "--root", str(tmp_path / "sets"), "--out", str(out))
    capsys.readouterr()
    fixed = {"model": f'"{tiny_checkpoint}"', "data.name": '"shapes"', "data.held_out": 16, "data.rendered": 128}
    fixed |= {"optim.batch": 8, "optim.micro_batch": 8, "optim.epochs": 1, "validation.images": 16, "validation.steps": 2}
    own = path.read_text().replace('"tecoa-pad-b32"', '"tecoa-pad-b32", "trainable.size" = 2').replace("153600", "100")
    path.write_text(f"{own}\n[fixed]\n" + "".join(f'"{key}" = {value}\n' for key, value in fixed.items()))
    with every_preset.meaning("tecoa-16", cut):
        command(monkeypatch, "--paper", "tecoa", "--world", "clip", "--out", out, "--claims", tmp_path / "claims", "--plan")
    said = capsys.readouterr().out
    assert "cannot start" not in said
    for study in ("pgd", "autoattack", "methods", "epsilon", "interpolation", "sizes", "designs", "prompt-sizes"):
        assert f"evaluation of {study}" in said
    assert f"robustclip sweep epsilon --protocol tecoa-16 --recipe tecoa-b32 --seed 1 --model {tiny_checkpoint} --data.name shapes" in said
    assert "training of tokens-1, tower-1 of study sizes, seeds 0, 1 (4 trainings missing" in said  # the others are of studies before it
    assert "in all, without Ray's starts and the checks: about" in said
    assert "cannot tell yet" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--paper", "tecao", "--world", "rendered"), "no paper 'tecao' (did you mean tecoa?)"),
        (("--paper", "tecoa", "--world", "rendred"), "no world 'rendred' (did you mean rendered?)"),
        (("--paper", "tecoa", "--world", "rendered", "--claims", "nowhere"), "there is no ledger"),
        (("--world", "rendered"), "--paper"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        command(monkeypatch, *words, "--out", tmp_path)
    assert said in str(refused.value)
