"""RAY_ADDRESS of nothing, of something else or of another version is one line, and soon; a long TMPDIR does not keep Ray from starting."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from robustclip.base.errors import UserError
from robustclip.runtime import address, cluster

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.9.3
    Python: 3.11.13
This process on node 10.0.0.7 was started with:
    Ray: 2.60.0
    Python: 3.11.13
"""


@pytest.fixture
def web_server() -> Iterator[str]:
    """Yield the address of something that is no Ray."""

    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def closed_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def refusal(monkeypatch: pytest.MonkeyPatch, given: str) -> str:
    """Return what is said of a RAY_ADDRESS before Ray is asked to join it."""
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("asked to join"))
    with pytest.raises(UserError) as refused:
        cluster.connect()
    said = str(refused.value)
    assert given in said
    assert "\n" not in said
    return said


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing answers there" in refusal(monkeypatch, closed_port())


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch, web_server: str) -> None:
    monkeypatch.setattr(address, "WITHIN", 0.5)
    assert "no Ray head answers there" in refusal(monkeypatch, web_server)


@pytest.mark.parametrize("given", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    assert "ray job submit --address http://HOST:8265" in refusal(monkeypatch, given)


@pytest.mark.parametrize("given", ["127.0.0.1", "127.0.0.1:x"])
def test_an_address_without_a_port(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    assert "not HOST:PORT" in refusal(monkeypatch, given)


@pytest.mark.parametrize(("given", "joined"), [(None, None), ("", None), ("local", None), ("auto", "auto"), ("h:6379", "h:6379")])
def test_which_cluster(monkeypatch: pytest.MonkeyPatch, given: str | None, joined: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert address.address() == joined


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(MISMATCH), "Ray is 2.9.3 there and 2.60.0 here; both must be the same"),
        (
            RuntimeError(MISMATCH.replace("3.11", "3.12", 1)),
            "Ray is 2.9.3 there and 2.60.0 here, Python is 3.12.13 there and 3.11.13 here;",
        ),
        (
            ConnectionError("Could not find any\nrunning Ray instance."),
            "cannot join that cluster (Could not find any running Ray instance.)",
        ),
    ],
)
def test_why_a_cluster_cannot_be_joined(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError) as refused:
        cluster.connect()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


JOIN = """
import sys
import ray
from robustclip.base import errors
from robustclip.runtime import cluster

ray.__version__ = sys.argv[1]
errors.main(cluster.connect)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_of_another_version(ray_session: None) -> None:
    import ray

    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    other = subprocess.run([sys.executable, "-c", JOIN, "2.9.3"], env=env, capture_output=True, text=True, timeout=100)
    assert (other.returncode, f"Ray is {ray.__version__} there and 2.9.3 here" in other.stderr.splitlines()[-1]) == (2, True), other.stderr
    same = subprocess.run([sys.executable, "-c", JOIN, ray.__version__], env=env, capture_output=True, text=True, timeout=100)
    assert (same.returncode, same.stderr) == (0, "")


def test_a_long_tmpdir_is_not_ray_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # so that what is set comes undone
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 20)
    cluster.fit_sockets()
    assert "RAY_TMPDIR" not in os.environ
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 60)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    cluster.fit_sockets()
    assert os.environ["RAY_TMPDIR"] == "/tmp"


def test_a_long_folder_that_was_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/" + "x" * 60)
    with pytest.raises(UserError, match=r"RAY_TMPDIR=/scratch/x* has 69 bytes, Ray's sockets leave room for [0-9]+"):
        cluster.fit_sockets()


def test_the_longest_path_of_ray_is_known(ray_session: None) -> None:
    import ray

    sockets = ray.nodes()[0]["ObjectStoreSocketName"]
    assert len(cluster.SOCKET) >= len(sockets) - len(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR", "/tmp"))
    assert cluster.SOCKET.endswith(os.path.basename(sockets))


def test_sigterm_stays_whose_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    monkeypatch.setattr("ray.init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    try:
        cluster.start()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_ray_train_cannot_take_ctrl_c() -> None:
    assert cluster.beside(threading.current_thread) is not threading.main_thread()
    with pytest.raises(ZeroDivisionError):
        cluster.beside(lambda: 1 / 0)
