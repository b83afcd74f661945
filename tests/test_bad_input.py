"""What a user gets wrong is one line that names the culprit, and exit status 2: never a traceback, never a silent skip."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustclip.base import errors
from robustclip.data.datasets import ensure_set

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
Fails = Callable[..., str]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    """Run a pipeline that must fail and return its one line."""

    def run(pipeline: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [pipeline, *words, "--out", str(tmp_path / "out")])
        module = runpy.run_path(str(PIPELINES / pipeline))
        with pytest.raises(SystemExit) as stopped:
            errors.main(module["run"])
        assert stopped.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


def damaged_set(out: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    """Write the world's shapes as the prepared set `mine`, one shard of it changed."""
    card = ensure_set(str(out), "shapes", {"train": 256}, 0)
    folder = out / "data" / "mine"
    Path(card.folder).rename(folder)
    facts = json.loads((folder / "dataset.json").read_text()) | {"name": "mine", "render_seed": None}
    (folder / "dataset.json").write_text(json.dumps(facts))
    shard = folder / facts["shards"]["train"][0]["file"]
    pq.write_table(change(pq.read_table(shard)), shard, row_group_size=128)
    return shard.name


def test_unknown_recipe_key(fails: Fails) -> None:
    line = fails("train.py", "smoke", "--threat.image.epz", "2")
    assert "threat.image.epz" in line
    assert "threat.image.eps" in line


def test_negative_eps(fails: Fails) -> None:
    assert "eps is -1" in fails("train.py", "smoke", "--threat.image.eps", "-1")
    assert "eps" in fails("evaluate.py", "tiny-vit8", "--eps", "-2")


def test_a_data_set_that_does_not_exist(fails: Fails) -> None:
    assert "'cifar11'" in fails("train.py", "smoke", "--data.name", "cifar11")
    assert "did you mean shapes" in fails("evaluate.py", "tiny-vit8", "--sets", "shaeps")


def test_truncated_jpeg(fails: Fails, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in (1, 2):
            Image.effect_noise((40, 30), 60).save(tmp_path / "photos" / name / f"{i}.jpg")
    broken = tmp_path / "photos" / "b" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    assert "b/1.jpg" in fails("prepare.py", str(tmp_path / "photos"), "--name", "mine", "--split", "train", "--strict")


def test_missing_column(fails: Fails, tmp_path: Path) -> None:
    shard = damaged_set(tmp_path / "out", lambda table: table.drop_columns(["label"]))
    line = fails("train.py", "smoke", "--data.name", "mine")
    assert shard in line
    assert "label" in line


def test_label_outside_the_class_list(fails: Fails, tmp_path: Path) -> None:
    shard = damaged_set(tmp_path / "out", lambda table: table.set_column(2, "label", pa.array([99] * len(table), pa.int64())))
    line = fails("train.py", "smoke", "--data.name", "mine")
    assert shard in line
    assert "99" in line


def test_checkpoint_of_another_architecture(fails: Fails, tmp_path: Path, tiny_checkpoint: str) -> None:
    config = Path(tiny_checkpoint) / "open_clip_config.json"
    facts = json.loads(config.read_text())
    facts["model_cfg"]["vision_cfg"]["layers"] += 1
    config.write_text(json.dumps(facts))
    assert "do not fit the architecture" in fails("evaluate.py", tiny_checkpoint)


def test_what_does_not_exist_is_named(fails: Fails) -> None:
    assert "did you mean smoke" in fails("train.py", "smok")
    assert "did you mean demo" in fails("evaluate.py", "tiny-vit8", "--protocol", "dmo")
    assert "did you mean epsilon" in fails("sweep.py", "epsilom")
    assert "/nothing': give an embedded one" in fails("evaluate.py", "nothing")  # where it was looked for
    assert "did you mean apgd-ce-20" in fails("evaluate.py", "tiny-vit8", "--attacks", "apgd-ce-21")
