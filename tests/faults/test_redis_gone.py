"""Redis goes away without a word: packets are lost, no connection is closed, and the old ones stay dead afterwards.

Kept: what was acknowledged gets into the store when it is back; no thread waits for ever, holding a user's lock.
"""

import contextlib
import socket
import time

import pytest

from tests.serving.serving_world import ServingWorld
from tests.stores.native import RedisServer

from . import test_redis
from .proxy import Proxy


class LosingProxy(Proxy):
    """`losing`: whatever comes is lost. A connection that lost something passes nothing on any more."""

    losing = False

    def _pass(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:  # noqa: ARG002
        dead = False
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                dead = dead or self.losing
                if not dead:
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def test_nobody_waits_for_ever(world: ServingWorld, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_redis, "Proxy", LosingProxy)
    users = (9, 11, 13, 15)
    with test_redis._broken(world, redis_server) as broken:
        assert isinstance(broken.proxy, LosingProxy)
        for user in users:
            assert broken.answer(user)["degraded"] == []
        broken.proxy.losing = True
        assert [broken.rate(user, 70)["applied"] for user in users] == [False] * len(users)
        for user in users:
            assert broken.answer(user)["degraded"] == ["user_state"]
        time.sleep(1.0)
        broken.proxy.losing = False
        for user in users:
            broken.expect(user)
        broken.wait_for(lambda: all(broken.answer(user)["degraded"] == [] for user in users))
