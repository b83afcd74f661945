"""Where MLflow keeps runs: made whole or not at all, and whatever cannot be used is one line before any work."""

import json
import shutil
import sqlite3
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from robustclip.base.errors import UserError
from robustclip.runtime import store, tracking


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with a run in it; tests look at copies."""
    out = tmp_path_factory.mktemp("made")
    tracker = tracking.Tracker(str(out))
    tracker.run("key", "name", {"eps": 4.0})
    tracker.close()
    return out / "mlflow.db"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def test_a_database_whose_making_was_interrupted_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a SIGKILL: of what was begun, nothing stands in the way of the next command."""
    from mlflow.store.db import utils

    def killed(engine: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.Tracker(str(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()
    assert len(list(tmp_path.glob(".mlflow.db.*.making"))) == 1
    (tmp_path / "mlflow.db").touch()  # as sqlite leaves it before its first table
    tracker = tracking.Tracker(str(tmp_path))
    tracker.run("key", "name", {})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


HALF = ("DROP TABLE webhooks", "DELETE FROM alembic_version")


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ((*HALF, "DELETE FROM tags", "DELETE FROM params", "DELETE FROM runs"), "interrupted, it holds no runs .*delete it"),
        (HALF, "it holds 1 runs .*copy it and try `mlflow db upgrade sqlite:///"),
        (("UPDATE alembic_version SET version_num = 'ffff'",), "it holds 1 runs .*schema"),
        (
            ("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'robustclip'",),
            "deleted: .*experiments restore --experiment-id 1",
        ),
    ],
)
def test_a_database_that_would_fail_later_is_refused_with_the_remedy(copied: Path, statements: tuple[str, ...], said: str) -> None:
    execute(copied, *statements)
    with pytest.raises(UserError, match=said) as caught:
        tracking.Tracker(str(copied.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["text", "cut", "scribbled"])
def test_a_damaged_database_is_refused_and_left_as_it_is(copied: Path, damage: str) -> None:
    whole = copied.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "text": b"not a database " * 100,
        "cut": whole[:middle],
        "scribbled": whole[:4096] + b"\xff" * middle + whole[4096 + middle :],
    }
    copied.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"mlflow.db is damaged .*move it away"):
        tracking.Tracker(str(copied.parent))
    assert copied.read_bytes() == damaged[damage]


@pytest.mark.parametrize("odd", ["100%20sure", "why?not=1", "a b#c"])
def test_a_folder_may_be_called_anything(made: Path, tmp_path: Path, odd: str) -> None:
    (tmp_path / odd).mkdir()
    shutil.copy(made, tmp_path / odd / "mlflow.db")
    tracker = tracking.Tracker(str(tmp_path / odd))
    run = tracker.run("odd", "odd", {})
    tracker.artefacts(run, {"table.md": b"|a|"})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == [odd]
    with closing(sqlite3.connect(tmp_path / odd / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (2,)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///tmp/runs", "maintenance mode"),
        ("mlruns", "maintenance mode"),
        ("127.0.0.1:5000", "maintenance mode"),
        ("gopher://x", "gopher"),
        ("postgresql://ann:secret@127.0.0.1:9/x", "psycopg"),
    ],
)
def test_a_kind_of_store_that_is_none_is_refused(uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    shown = uri.replace("ann:secret", "...")
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI={shown} is no store .*{said}.*sqlite:////absolute/path.db"):
        tracking.Tracker(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow  # noqa: F401 - takes seconds by itself

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be used .*refused.*start that server"):
        tracking.Tracker(str(tmp_path))
    assert time.monotonic() - started < 10


class Gateway(BaseHTTPRequestHandler):
    """What stands before many a server: it asks who calls, and serves MLflow's own calls and nothing else."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") in ("Bearer secret", f"Basic {b64encode(b'ann:secret').decode()}")
        found = known and self.path.startswith("/api/2.0/mlflow/experiments/get-by-name?")
        experiment = {"experiment_id": "7", "name": store.EXPERIMENT, "lifecycle_stage": "active"}
        body = json.dumps({"experiment": experiment} if found else {}).encode() if known else b"who are you?"
        self.send_response(200 if found else 404 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("known", [{"TOKEN": "secret"}, {"USERNAME": "ann", "PASSWORD": "secret"}, {"TOKEN": "wrong"}, {}])
def test_a_gateway_is_asked_what_mlflow_asks_with_what_mlflow_knows(
    gateway: str, known: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway)
    for name, value in known.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    if "secret" in known.values():
        assert tracking.Tracker(str(tmp_path)).experiment == "7"
        return
    with pytest.raises(UserError, match=r"cannot be used .*401.*MLFLOW_TRACKING_TOKEN"):
        tracking.Tracker(str(tmp_path))


def test_the_embedded_store_needs_no_server(tmp_path: Path) -> None:
    assert store.tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert "\n" not in store.how_to_open(str(tmp_path), "")
    made = tracking.Tracker(str(tmp_path))
    command, page = store.how_to_open(str(tmp_path), "  ").splitlines()
    assert "--host 127.0.0.1" in command
    assert page == f"  http://127.0.0.1:5000/#/experiments/{made.experiment}?workflowType=machine_learning"
    assert store.database_of(store.tracking_uri(str(tmp_path / "50%?"))) == f"{tmp_path}/50%?/mlflow.db"
