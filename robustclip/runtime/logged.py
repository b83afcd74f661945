"""What a run in MLflow read and what it made: its data sets, its model, and the models that only MLflow knows, found by name."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.staging import staged
from robustclip.base.values import key
from robustclip.runtime import store

MODEL = "model"  # what MLflow calls the model of a run
WEIGHTS = "robustclip.weights_sha256"
RUN, REGISTERED = "mlflow:", "models:/"
NAMED = re.compile(r"(?:mlflow:|models:/)[^,\[\]]*")
RUN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Input:
    """A split of a data set that a run read: the hash of its shards, how many of its images, of how many classes, and its folder."""

    name: str
    split: str
    sha256: str
    images: int
    classes: int
    folder: str


def log_inputs(client: Any, run_id: str, inputs: Iterable[Input]) -> None:
    """Log the data sets of a run that it has not yet."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    there = {(each.dataset.name, each.dataset.digest) for each in client.get_run(run_id).inputs.dataset_inputs}
    missing = [
        DatasetInput(
            Dataset(
                f"{each.name}/{each.split}",
                each.sha256[:32],  # MLflow takes 36
                "local" if storage.is_local(each.folder) else "s3" if each.folder.startswith("s3:") else "gs",
                json.dumps({"uri": each.folder}),
                profile=json.dumps({"num_rows": each.images, "classes": each.classes}),
            ),
            [InputTag(MLFLOW_DATASET_CONTEXT, each.split)],
        )
        for each in inputs
        if (f"{each.name}/{each.split}", each.sha256[:32]) not in there
    ]
    if missing:
        client.log_inputs(run_id, missing)


def model_of(client: Any, run_id: str) -> Any:
    """Return the model that a run has logged whole, None where it has none."""
    from mlflow.entities import LoggedModelStatus

    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    return next((each for each in found if each.status == LoggedModelStatus.READY), None)


def log_model(client: Any, run_id: str, checkpoint: str, sha256: str) -> None:
    """Log the folder of a checkpoint as the model of a run, unless the run has one of these weights."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment = client.get_run(run_id).info.experiment_id
    for each in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        if each.tags.get(WEIGHTS) == sha256 and each.status == LoggedModelStatus.READY:
            return
        client.delete_logged_model(each.model_id)  # of a process that was killed at it, or of other weights
    made = client.create_logged_model(experiment, MODEL, run_id, tags={WEIGHTS: sha256}, model_type="robustclip")
    with on_disk(checkpoint) as folder:
        client.log_model_artifacts(made.model_id, folder)
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])


def register(client: Any, run_id: str, name: str) -> None:
    """Make the model of a run the next version of a registered model, unless it is a version of it already."""
    logged = model_of(client, run_id)
    if not logged:
        return
    # A server finds the files of a model by its id. Without one MLflow would look for the id in what is its default store, not in this.
    source = f"{REGISTERED}{logged.model_id}" if client.tracking_uri.startswith("http") else logged.artifact_location
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if source not in {each.source for each in client.search_model_versions(f"name = '{name}'")}:
        client.create_model_version(name, source, run_id, model_id=logged.model_id)


@contextmanager
def on_disk(folder: str) -> Iterator[str]:
    """Yield a folder of this machine with the files of `folder`, itself where it is one."""
    if storage.is_local(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as here:
        for path in storage.list_files(folder):
            with storage.open_read(path) as source, (Path(here) / storage.name_of(path)).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        yield here


def located(name: str, out: str) -> str:
    """Return a model's name with each part that only MLflow knows, `mlflow:RUN_ID` or `models:/NAME/VERSION`, as the folder it lies in.

    A model in a store that only its server reaches is copied to mlflow/ under `out`. Raises UserError for a run or model that is not there.
    """
    return NAMED.sub(lambda found: _folder(found[0], out), name)


def with_located(changes: dict[str, Any], out: str) -> dict[str, Any]:
    """Return the changes to a recipe with its model, if they name another, as it is `located`."""
    return changes | ({"model": located(str(changes["model"]), out)} if "model" in changes else {})


def _folder(said: str, out: str) -> str:
    uri = store.tracking_uri(out)
    client, _ = store.connect(uri, out)
    place = _place(client, said, store.without_password(uri))
    if not place.startswith(("mlflow-artifacts:", "http")):
        return storage.resolve(place)
    from mlflow.artifacts import download_artifacts

    folder = storage.join(out, "mlflow", key(place))
    if not storage.exists(folder):
        with tempfile.TemporaryDirectory() as here, staged(folder) as stage:
            download_artifacts(place, dst_path=here, tracking_uri=uri)
            for path in (path for path in Path(here).rglob("*") if path.is_file()):
                with path.open("rb") as source, storage.writing(storage.join(stage, path.name)) as copy:
                    shutil.copyfileobj(source, copy)
    return folder


def _place(client: Any, said: str, where: str) -> str:
    """Return the address at which MLflow keeps the files of a model that is named so."""
    from mlflow.exceptions import MlflowException

    name, _, version = said.removeprefix(REGISTERED).partition("/")
    try:
        if said.startswith(RUN):
            return _place_of_run(client, said, where)
        if name.startswith("m-") and not version:
            return client.get_logged_model(name).artifact_location
        if "@" in name:
            name, alias = name.rsplit("@", 1)
            version = client.get_model_version_by_alias(name, alias).version
        return client.get_model_version_download_uri(name, version)
    except MlflowException as error:
        raise UserError(f"{said}: not in {where} ({store.reason_of(error)})") from error


def _place_of_run(client: Any, said: str, where: str) -> str:
    run_id = said.removeprefix(RUN)
    if not RUN_ID.fullmatch(run_id):
        raise UserError(f"{said}: a run is named by its 32 hex digits, {RUN}RUN_ID, as its page in MLflow says")
    if not (logged := model_of(client, run_id)):
        raise UserError(f"{said}: that run has no model in {where}: give the run of a training, or of one of a sweep's trials")
    return logged.artifact_location
