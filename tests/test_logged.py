"""What a run read and made, as MLflow keeps it: data sets, the model, registered versions; and models found again by MLflow's names."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.runtime import logged, tracking
from robustclip.runtime.logged import Input, located, with_located

TRAIN, TEST = (Input("shapes", split, digit * 64, 100, 4, '/data/"shapes"') for split, digit in (("train", "a"), ("test", "b")))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("logged"))


@pytest.fixture(scope="module")
def tracker(out: str) -> tracking.Tracker:
    return tracking.Tracker(out)


@pytest.fixture
def run(tracker: tracking.Tracker, tiny_checkpoint: str, request: pytest.FixtureRequest) -> tracking.Run:
    """Return a run of its own for each test, with the tiny CLIP as its model."""
    made = tracker.run(request.node.name, "train", {})
    tracker.model(made, tiny_checkpoint, models.identity(tiny_checkpoint))
    return made


def test_data_sets_are_logged_once(tracker: tracking.Tracker) -> None:
    run = tracker.run("inputs", "train", {})
    for inputs in ((TRAIN,), (TRAIN, TEST), (TEST,)):
        tracker.inputs(run, inputs)
    found = tracker.client.get_run(run.id).inputs.dataset_inputs
    assert sorted((each.dataset.name, each.dataset.digest, each.tags[0].value) for each in found) == [
        ("shapes/test", "b" * 32, "test"),
        ("shapes/train", "a" * 32, "train"),
    ]
    assert {json.loads(each.dataset.source)["uri"] for each in found} == {TRAIN.folder}


def test_a_run_has_one_model_and_its_name_is_that_of_the_checkpoint(
    tracker: tracking.Tracker, run: tracking.Run, tiny_checkpoint: str, out: str
) -> None:
    tracker.model(run, tiny_checkpoint, models.identity(tiny_checkpoint))
    (output,) = tracker.client.get_run(run.id).outputs.model_outputs
    found = located(f"mlflow:{run.id}", out)
    assert output.model_id in found
    assert models.identity(found) == models.identity(tiny_checkpoint)
    assert located(f"tpt[views=4]:models:/{output.model_id}", out) == f"tpt[views=4]:{found}"
    assert located(f"ensemble:mlflow:{run.id},tiny-vit8", out) == f"ensemble:{found},tiny-vit8"
    assert with_located({"model": f"mlflow:{run.id}", "seed": 1}, out) == {"model": found, "seed": 1}
    assert with_located({"seed": 1}, out) == {"seed": 1}


def test_a_model_that_was_not_logged_whole_is_logged_again(
    tracker: tracking.Tracker, tiny_checkpoint: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.run("killed at its model", "train", {})
    with monkeypatch.context() as patched:
        patched.setattr(tracker.client, "log_model_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            logged.log_model(tracker.client, run.id, tiny_checkpoint, "f" * 64)
    with pytest.raises(UserError, match="that run has no model"):
        located(f"mlflow:{run.id}", out)
    logged.log_model(tracker.client, run.id, tiny_checkpoint, "f" * 64)
    assert len(tracker.client.search_logged_models([tracker.experiment], f"source_run_id = '{run.id}'")) == 1
    assert Path(located(f"mlflow:{run.id}", out), "config.json").exists()


def test_other_weights_take_the_place_of_a_runs_model(
    tracker: tracking.Tracker, run: tracking.Run, make_model: Any, tmp_path: Path, out: str
) -> None:
    other: Model = make_model(seed=1)
    save(other, str(tmp_path / "other"))
    tracker.model(run, str(tmp_path / "other"), other.sha256)
    assert models.load(located(f"mlflow:{run.id}", out)).sha256 == other.sha256


def test_a_model_is_a_version_once(
    tracker: tracking.Tracker, run: tracking.Run, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        tracker.register(run, "best")
    assert not os.listdir()  # MLflow's default store, where nobody names one, would be here
    (version,) = tracker.client.search_model_versions("name = 'best'")
    assert version.run_id == run.id
    tracker.client.set_registered_model_alias("best", "champion", version.version)
    assert located("models:/best/1", out) == located("models:/best@champion", out) == located(f"mlflow:{run.id}", out)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlflow:12ab", "a run is named by its 32 hex digits"),
        (f"mlflow:{'0' * 32}", "not in sqlite"),
        ("models:/nobody/1", "models:/nobody/1: not in sqlite"),
        ("models:/m-0", "not in sqlite"),
        ("interpolate:0.5:mlflow:../../etc", "a run is named by"),
    ],
)
def test_what_is_not_there_is_one_line(tracker: tracking.Tracker, out: str, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        located(name, out)
    assert "\n" not in str(error.value)


def test_any_other_name_is_left_as_it_is(tmp_path: Path) -> None:
    for name in ("tiny-vit8", "interpolate:0.5:s3://bucket/runs/a/model", "runs/models", "tapt[clean=/a/m.safetensors]:tiny-vit8"):
        assert located(name, str(tmp_path)) == name
    assert not list(tmp_path.iterdir())  # and no store was asked


def test_a_model_that_only_a_server_reaches_is_copied_once(
    tracker: tracking.Tracker, run: tracking.Run, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `mlflow server --artifacts-destination`: MLflow then names the files by an address of its own."""
    source, copied = located(f"mlflow:{run.id}", out), []

    def download(place: str, dst_path: str, tracking_uri: str) -> str:
        copied.append(place)
        for name in os.listdir(source):
            Path(dst_path, name).write_bytes(Path(source, name).read_bytes())
        return dst_path

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    monkeypatch.setattr(logged, "_place", lambda *_: "mlflow-artifacts:/models/m-1/artifacts")
    folders = {located("models:/best/1", out) for _ in range(2)}
    assert len(copied) == len(folders) == 1
    assert folders.pop().startswith(f"{out}/mlflow/")


def test_a_run_says_what_made_it(tracker: tracking.Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/pipelines/sweep.py", "epsilon", "--asha"])
    tags = tracker.client.get_run(tracker.run("said", "sweep", {}).id).data.tags
    assert tags["mlflow.source.name"] == "sweep.py epsilon --asha"
    assert len(bytes.fromhex(tags.get("mlflow.source.git.commit", ""))) in (0, 20)  # of a clone; a wheel has none
    kind = tracker.client.get_experiment(tracker.experiment).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_mlflow_follows_the_machine_where_it_is_asked_to(tracker: tracking.Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, str]] = []

    class Monitor:
        def __init__(self, run_id: str, resume_logging: bool, tracking_uri: str):
            self.about = (run_id, tracking_uri)

        def start(self) -> None:
            started.append(self.about)

    monkeypatch.setattr("mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor", Monitor)
    run = tracker.run("watched", "sweep", {})
    tracker.watch(run)
    assert not started
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    tracker.watch(run)
    assert started == [(run.id, tracker.uri)]
