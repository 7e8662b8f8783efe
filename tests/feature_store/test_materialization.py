"""Two materialisations of one home, at the same time. Stage: tests. Absent: what they write (`test_online_store`)."""

import threading
from pathlib import Path
from typing import Any

from recsys.feature_store import FeatureStore
from recsys.feature_store.materialization import materialize_all

from .feature_worlds import T0, build


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    """Both fill one file beside; whoever comes later must not remove the other's."""
    world = build(tmp_path, [(1, 3, 4.0, T0), (2, 3, 5.0, T0)])
    other = FeatureStore(world.store.config)
    second = threading.Thread(target=other.materialize)

    def meanwhile(_fresh: Any) -> None:
        second.start()
        second.join(2)
        assert second.is_alive()

    materialize_all(world.store._feast_store, world.store.config, meanwhile)
    second.join(60)
    assert not second.is_alive()
    assert [row[0].item_ids for row in world.store.online_states([1, 2]) if row] == [(3,), (3,)]
    assert not list(world.home.feast.glob("*.part*"))
    other.close()
    world.store.close()
