"""docs/first.md, command by command: its ten lines run in their order on miniatures in the real formats; CUTS is all that differs."""

import shlex
from collections.abc import Callable
from pathlib import Path

import docs_pages
import open_clip
import pytest
from layouts import LAYOUTS, folder
from miniatures import WNIDS, cifar_python, classes
from sourcing import image

from robustclip import __main__
from robustclip.data.sets import SETS
from robustclip.evaluation.presets import PRESETS
from robustclip.models import exporting
from robustclip.models.model import Model
from robustclip.runtime import cli

COMMANDS = [command.text for command in docs_pages.commands(docs_pages.ROOT / "docs" / "first.md") if command.text.startswith("robustclip")]
# What is added to a command of the page, by its number; of an option that is given twice the last one counts. Two sets, three images of
# each, one radius and the attack of TeCoA's Table 1, one evaluator; steps of 4 images instead of 256.
SMALL = "--sets cifar10 stl10 --n 3 --attacks pgd-100 --eps 1 --actors 1"
STEPS = "--data.held_out 4 --optim.batch 4 --optim.micro_batch 2 --optim.epochs 1 --optim.warmup 1 --validation.images 4"
CHANGED = "--protocol 'tecoa-14 (changed)'"  # what records call a protocol of other sets
CUTS = {2: SMALL, 3: SMALL, 4: STEPS, 5: f"{STEPS} --data.n 8", 6: STEPS, 7: SMALL, 8: CHANGED, 9: CHANGED}
# A part of what each command must say, by its number.
SAYS = {
    1: "14 of 14 sets of tecoa-14 are in",
    2: "time",
    3: "| plain-clip |",
    4: "time",
    5: "tecoa-b32: 2 steps",
    6: "tecoa-b32: 5 steps",
    7: "FT(TeCoA)",
    8: "Everything lies in",
    9: "plain-clip",
    10: "numbers of the card  protocol tecoa-14",
}
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def data_sets(path: Path) -> Path:
    """Make the 14 sets as a user has them, each under its usual name: two of as many classes as the protocol means, the others of a few."""
    made = {layout.name: layout.make for layout in reversed(LAYOUTS) if layout.name in PRESETS["tecoa-14"].sets}
    made["imagenet"] = folder(lambda: classes(*(f"{split}/{wnid}" for split in ("train", "val") for wnid in WNIDS), n=8, suffix=".JPEG"))
    made["cifar10"] = folder(lambda: cifar_python(CIFAR))
    made["stl10"] = folder(lambda: {f"test/{name}/0.png": image(96, 96) for name in STL})
    (path / "sets").mkdir(parents=True)
    for name, make in made.items():
        (path / name).mkdir(parents=True)
        source = Path(make(path / name)[0])
        source.rename(path / "sets" / f"{SETS[name].folders[0]}{source.suffix if source.is_file() else ''}")
    return path / "sets"


def test_the_page_has_ten_commands_and_a_cut_for_none_that_is_not_there() -> None:
    assert len(COMMANDS) == 10
    assert {*CUTS} < {*SAYS} == {*range(1, 11)}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_ten_commands_run_in_their_order(
    ray_session: None, make_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exporting.write(make_model(), "open_clip", str(tmp_path / "plain-clip"))
    stands_for = {"CLIP": str(tmp_path / "plain-clip"), "SETS": str(data_sets(tmp_path / "data"))}
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cli, "say_on_terminal", lambda: None)
    for number, command in enumerate(COMMANDS, 1):
        words = shlex.split(f"{command} {CUTS.get(number, '')}")
        monkeypatch.setattr("sys.argv", [stands_for.get(word, word) for word in words])
        __main__.run()
        said = capsys.readouterr().out
        assert SAYS[number] in said, f"{number}: {said}"
        if number == 6:
            stands_for["CHECKPOINT"] = next(line.split()[-1] for line in said.splitlines() if line.startswith("checkpoint "))
    card = (tmp_path / "work" / "my-robust-clip" / "README.md").read_text()
    assert "tecoa-14 (changed)" in card
    clip = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'work' / 'my-robust-clip'}")[0]
    assert clip.visual.image_size in (16, (16, 16))
