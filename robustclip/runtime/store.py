"""Where MLflow keeps runs: the embedded database, made whole or not at all, and every other store looked at before any work."""

import glob
import logging
import os
import re
import shlex
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone

EXPERIMENT = "robustclip"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # trainings, not talks with a language model
TRAININGS = "workflowType=machine_learning"  # without it the UI opens every experiment as talks, unless told otherwise before
DATABASES = ("postgresql", "mysql", "mssql")
ANEW = "move it away: the same commands make a new one and log again what they find finished"
TIMEOUT = 8  # seconds that a server has for an answer
BUSY = 20.0  # seconds that a writer waits for another one


def store_folder(out: str) -> Path:
    """Return the local folder of mlflow.db: `out` itself, or a fixed one in the home folder when `out` is an object store."""
    return Path(out) if storage.is_local(out) else Path.home() / "robustclip"


def sqlite_uri(path: str) -> str:
    """Return the URI under which MLflow finds the database at an absolute path."""
    if not {"%", "?"} & set(path):
        return f"sqlite:///{path}"
    # SQLAlchemy reads both as it does in any URL. The driver is named, since MLflow makes the folder of what follows sqlite:/// unquoted.
    return f"sqlite+pysqlite:///{quote(path)}"


def tracking_uri(out: str) -> str:
    """Return MLFLOW_TRACKING_URI, or the embedded sqlite store under `out`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(f"{store_folder(out)}/mlflow.db")


def how_to_open(out: str, margin: str) -> str:
    """Return the command that opens the UI on this machine and, in a line that begins with `margin`, its page; or a server's address."""
    uri = tracking_uri(out)
    if uri.startswith("http"):
        return uri
    here, command = Path.cwd(), Path(sys.executable).with_name("mlflow")
    command = command.relative_to(here) if command.is_relative_to(here) else command
    opening = shlex.join([str(command), "ui", "--host", "127.0.0.1", "--port", "5000", "--backend-store-uri", uri])
    page = f"\n{margin}http://127.0.0.1:5000/#/experiments/{found}?{TRAININGS}" if (found := _experiment(uri)) else ""
    return f"{opening}{page}"


def _experiment(uri: str) -> str | None:
    """Return the id of the experiment in the database behind a sqlite URI, if it is there."""
    path = database_of(uri)
    if path is None or not Path(path).exists():
        return None
    with closing(_open(path)) as database:
        found = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    return str(found[0]) if found else None


def database_of(uri: str) -> str | None:
    """Return the absolute path of the file behind a sqlite URI, None for another store."""
    if not uri.startswith(("sqlite:", "sqlite+")):
        return None
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    return os.path.abspath(path) if path and path != ":memory:" else None


def without_password(text: str) -> str:
    """Return a text without who calls in the addresses it names."""
    return re.sub(r"://[^/\s@]*@", "://...@", text)


def reason_of(error: BaseException) -> str:
    """Return what an error of MLflow says in one line, its middle left out where it is long."""
    said = " ".join(without_password(str(error)).partition("(Background on this error")[0].split()) or type(error).__name__
    return said if len(said) <= 240 else f"{said[:120]} ... {said[-115:]}"


def quieten() -> None:
    """Set MLflow's switches, where nobody has: before it is imported."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",  # it would write to the home folder
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        # We try again ourselves. MLflow would for minutes, while others wait, and make a run twice of which the answer was lost.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT),
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised as well


def connect(uri: str, out: str) -> tuple[Any, str]:
    """Return an MLflow client and the id of the experiment, made where it is not there, artefacts of a database in mlartifacts/.

    Raises UserError for whatever would only be found after the work: a server that does not answer or does not let us in, a kind of store
    that MLflow gave up, a database that is damaged, half made, read-only, or of another version of MLflow, a deleted experiment.
    """
    quieten()
    artifacts = store_folder(out) / "mlartifacts"
    if (path := database_of(uri)) is not None:
        _look_into(path, uri, artifacts)
    elif uri.startswith(DATABASES):
        with _said(uri):
            _reach(uri)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    local = None if uri.startswith("http") else artifacts.as_uri()
    with _said(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return client, client.create_experiment(EXPERIMENT, artifact_location=local, tags=KIND)
            except MlflowException:  # another machine was first
                found = client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {EXPERIMENT} in {uri} was deleted: restore it with "
            f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return client, found.experiment_id


@contextmanager
def _said(uri: str) -> Iterator[None]:
    """Turn whatever MLflow raises for a store into one line with what may mend it."""
    try:
        yield
    except Exception as error:  # of MLflow, requests, SQLAlchemy, a driver that is not installed
        where = f"MLFLOW_TRACKING_URI={without_password(uri)}" if "MLFLOW_TRACKING_URI" in os.environ else uri
        if uri.startswith("http"):
            way_in = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or in MLFLOW_TRACKING_TOKEN"
            remedy = f"start that server, mend the address, give what lets you in in {way_in}, or unset the variable"
            raise UserError(f"{where} cannot be used ({reason_of(error)}): {remedy}") from error
        remedy = "give the http:// address of a server or sqlite:////absolute/path.db, or unset the variable"
        raise UserError(f"{where} is no store that MLflow can use ({reason_of(error)}): {remedy}") from error


def _reach(uri: str) -> None:
    """Connect to a database server once; MLflow itself would try for minutes."""
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    engine.connect().close()
    engine.dispose()


def _look_into(path: str, uri: str, artifacts: Path) -> None:
    """Make a sqlite database that is not there or empty, else raise UserError where it cannot be used; one process at a time."""
    with alone(path):
        tables = _tables(path) if os.path.exists(path) else set()
        if not tables:
            with _said(uri):
                _make(path, artifacts)
            return
        from mlflow import MlflowClient

        try:
            MlflowClient(uri).get_experiment_by_name(EXPERIMENT)  # MLflow brings a database of an older version up to date
        except Exception as error:  # whatever a table too many or too few leads to
            reason = reason_of(error)
            if not (held := _runs(path)):
                remedy = "delete it, the same command makes it anew"
                raise UserError(f"{path}: its making was interrupted, it holds no runs ({reason}): {remedy}") from error
            remedy = f"copy it and try `mlflow db upgrade {shlex.quote(uri)}`, or {ANEW}"
            raise UserError(f"{path}: MLflow cannot use it, and it holds {held} runs ({reason}): {remedy}") from error


def _tables(path: str) -> set[str]:
    """Return the tables of a database that is whole and can be written, else raise UserError."""
    try:
        with closing(_open(path)) as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
            return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        kind = "cannot be used" if isinstance(error, sqlite3.OperationalError) else "is damaged"
        raise UserError(f"{path} {kind} ({reason_of(error)}): mend or restore it, or {ANEW}") from error


def _runs(path: str) -> int:
    with closing(_open(path)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
        except sqlite3.DatabaseError:
            return 0


def _open(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=BUSY)


def _make(path: str, artifacts: Path) -> None:
    """Make the database beside its place and move it there: MLflow takes seconds, and what it began it cannot go on with."""
    from mlflow.entities import ExperimentTag
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder, name = os.path.split(path)
    for left in Path(folder).glob(f".{glob.escape(name)}.*.making*"):  # by a killed process: who makes it is alone
        left.unlink()
    making = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.making")
    store = SqlAlchemyStore(sqlite_uri(making), str(artifacts))
    store.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri(), tags=[ExperimentTag(*each) for each in KIND.items()])
    store.engine.dispose()
    os.replace(making, path)
