"""The disk is full: the whole home lies on a small file system of its own.

Kept: every acknowledged event; nothing of one that was refused; answers, which need no writes. When there is space
again the service goes on by itself.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recsys.features.state import Event
from recsys.features.state_merge import state_from_events
from serving.observability.metrics import Metrics
from serving.service import Service
from tests.serving.serving_client import connected
from tests.serving.serving_world import ITEMS, ServingWorld, build
from tests.stores.native import MISSING, REQUIRED

from .conftest import own_events

SIZE = "96m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"a small file system cannot be mounted here: {done.stderr.strip()}"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{why}; root may ({REQUIRED}=1 asks for it)", pytrace=False)
        MISSING.append(why)
        pytest.skip(why)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space there is, to the last byte."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as handle:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while handle.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return path


def post(client: httpx.Client, body: dict[str, object]) -> int:
    return client.post("/v1/events", json=body).status_code


def test_a_full_disk_loses_nothing_and_is_got_over(small_disk: Path, closing: list[Service]) -> None:
    world = build(small_disk / "home")
    service = Service.load(world.settings, Metrics())
    closing.append(service)
    sent = [
        {
            "user_id": user,
            "item_id": item,
            "rating": 4.0,
            "timestamp": world.end + item,
            "event_id": f"{user}-{item}",
        }
        for item in range(1, ITEMS + 1)
        for user in (501, 1)
    ]
    taken: list[dict[str, object]] = []
    with connected(world.settings, service) as client:
        for body in sent[:10]:
            assert post(client, body) == 201
            taken.append(body)
        filler = fill(small_disk)
        refused = []
        for body in sent[10:]:  # the last block of the file still has room for some
            status = post(client, body)
            assert status in (201, 503)
            (taken if status == 201 else refused).append(body)
            if len(refused) == 20:
                break
        assert len(refused) == 20
        batch = {"events": sent[-40:]}
        assert post(client, batch) == 503
        _check_log(service, world, taken)
        answer = client.get("/v1/users/3/recommendations").json()
        assert (answer["degraded"], len(answer["items"])) == ([], 10)
        assert client.get("/v1/users/501/recommendations").status_code == 200
        filler.unlink()
        for body in refused:
            assert post(client, body) == 201
            taken.append(body)
        assert post(client, batch) == 201
        taken += sent[-40:]
        _check_log(service, world, taken)
        until = time.monotonic() + 30
        while service.states._pending:  # whose event was logged, and whose state found no room
            assert time.monotonic() < until
            client.get("/v1/users/3/recommendations")
            time.sleep(0.05)
        for user in (501, 1):
            own = [Event(int(b["item_id"]), 4.0, int(b["timestamp"])) for b in taken if b["user_id"] == user]  # type: ignore[call-overload]
            stored = service.store.online_state(user)
            assert stored is not None
            assert stored[0] == state_from_events(stored[0], own_events(world, user) + own)[0]


def _check_log(service: Service, world: ServingWorld, taken: list[dict[str, object]]) -> None:
    """What was acknowledged, and nothing else; no torn end."""
    assert [e.event_id for e in service.event_log.read()] == [body["event_id"] for body in taken]
    (path,) = world.home.events.iterdir()
    assert path.read_bytes().count(b"\n") == len(taken)
    assert path.read_bytes().endswith(b"\n")
