"""The disk of the event table is full. Kept: every acknowledged event; nothing of one that was refused; answers, which
need no writes. When there is space again the service goes on by itself."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recsys.events import EventTable, sqlite_url
from serving.model_lifecycle.served_model import ServedModel, registry_of
from tests.serving.conftest import service_of
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected
from tests.serving.serving_world import build
from tests.stores.native import MISSING, REQUIRED

SIZE = "2m"


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


def test_a_full_disk_loses_nothing_and_is_got_over(small_disk: Path, tmp_path: Path) -> None:
    world = build(tmp_path / "home", feature_store=False)
    table = EventTable(sqlite_url(small_disk / "events.db"))
    settings = world.settings.model_copy(update={"events": table})
    store, registry = InMemoryStore(world.states, world.timeline), registry_of(settings)
    model = ServedModel.load(settings, store, registry, registry.resolve("champion"), world.end)  # type: ignore[arg-type]
    sent = [
        {"user_id": user, "item_id": item, "rating": 4.0, "timestamp": world.end + item, "event_id": f"{user}-{item}"}
        for item in range(1, 8)
        for user in range(501, 521)
    ]
    with connected(settings, service_of(settings, store, model, world)) as client:
        assert all(post(client, body) == 201 for body in sent[:10])
        filler = fill(small_disk)
        statuses = [post(client, body) for body in sent[10:-40]]  # the last blocks still have room for some
        assert {503} <= set(statuses) <= {201, 503}
        batch = {"events": sent[-40:]}
        assert post(client, batch) == 503
        acknowledged = sent[:10] + [body for body, status in zip(sent[10:], statuses, strict=False) if status == 201]
        refused = [body for body in sent[:-40] if body not in acknowledged]
        assert [event.event_id for event in table.read()] == [body["event_id"] for body in acknowledged]
        answer = client.get("/v1/users/3/recommendations").json()
        assert (answer["degraded"], len(answer["items"])) == ([], 10)
        filler.unlink()
        assert all(post(client, body) == 201 for body in refused)
        assert post(client, batch) == 201
        stored = [event.event_id for event in table.read()]
    assert stored == [body["event_id"] for body in acknowledged + refused + sent[-40:]]
