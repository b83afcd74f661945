"""RAY_ADDRESS: whether a cluster answers there, and in one line what keeps one from being joined."""

import os
import re
import socket

from robustclip.base.errors import UserError

WITHIN = 5.0  # seconds for the host to answer, and as many for Ray on it: its own client tries for minutes
ELSE = "correct RAY_ADDRESS, or unset it to run on this machine"


def address() -> str | None:
    """Return the address of the cluster to join, or None: Ray is started on this machine."""
    given = os.environ.get("RAY_ADDRESS", "")
    return None if given in ("", "local") else given


def check_address() -> None:
    """Raise UserError within 10 s when no Ray answers at RAY_ADDRESS: before the work, not after it."""
    given = address()
    if given is None or given == "auto":
        return
    if "://" in given:
        submit = "ray job submit --address http://HOST:8265 --working-dir . -- python pipelines/..."
        raise UserError(f"RAY_ADDRESS={given}: it takes HOST:PORT of a head that this machine is a node of; from elsewhere use {submit}")
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={given} is not HOST:PORT, as `ray start --head` prints it (often port 6379): {ELSE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), WITHIN).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS={given}: nothing answers there ({error}): start that cluster, {ELSE}") from error
    if not speaks_grpc(given):
        raise UserError(f"RAY_ADDRESS={given}: no Ray head answers there (often port 6379; 8265 is its dashboard's): {ELSE}")


def speaks_grpc(given: str) -> bool:
    """Return whether what listens at HOST:PORT speaks Ray's protocol, unless that is encrypted: then True."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    with grpc.insecure_channel(given) as channel:
        try:
            grpc.channel_ready_future(channel).result(WITHIN)
        except grpc.FutureTimeoutError:
            return False
    return True


def refused(given: str, error: Exception) -> str:
    """Return in one line why the cluster at an address cannot be joined: which versions differ, or what Ray says."""
    said = " ".join(str(error).split())
    versions = re.findall(r"\b(Ray|Python): (\S+)", said)
    if "Version mismatch" not in said or len(versions) != 4:
        return f"RAY_ADDRESS={given}: cannot join that cluster ({said[:300]}): {ELSE}"
    pairs = zip(versions[:2], versions[2:])
    differ = ", ".join(f"{name} is {there} there and {here} here" for (name, there), (_, here) in pairs if there != here)
    return f"RAY_ADDRESS={given}: {differ}; both must be the same: install what that cluster has, {ELSE}"
