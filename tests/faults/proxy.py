"""A TCP proxy that delays, or refuses, what passes through it.

Stage: tests. In: a port of this machine. Out: another port, behind which it is slower. Absent: any protocol.
"""

import contextlib
import socket
import threading
import time


class Proxy:
    """`delay_s`: added to what goes to the server, each time. `refusing`: connections are closed, old and new."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.delay_s = 0.0
        self._refusing = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def refusing(self) -> bool:
        return self._refusing

    @refusing.setter
    def refusing(self, refusing: bool) -> None:
        self._refusing = refusing
        if refusing:
            self._close_all()

    def close(self) -> None:
        self._listening.close()
        self.refusing = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self._refusing:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._open |= {client, server}
                if self._refusing:  # since it was asked above
                    self._close_all()
                    continue
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if delayed and self.delay_s:
                    time.sleep(self.delay_s)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _close_all(self) -> None:
        with contextlib.suppress(KeyError):
            while True:
                one = self._open.pop()
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
