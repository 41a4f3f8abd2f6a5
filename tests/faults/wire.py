"""A connection to a server of this machine that a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Wire:
    """Forwards connections to 127.0.0.1:`target`, until so many bytes have passed (both ways) as the test allows.

    Attributes:
        port: where it listens.
        sent: bytes that have passed so far.
    """

    def __init__(self, target: int) -> None:
        self.target, self.sent = target, 0
        self._limit: int | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Wire:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self._close_all()

    def cut_after(self, count: int) -> None:
        """Break all connections, and every new one, once `count` more bytes have passed."""
        self._limit = self.sent + count

    def mend(self) -> None:
        """Let everything pass again."""
        self._limit = None

    @property
    def is_cut(self) -> bool:
        return self._limit is not None and self.sent >= self._limit

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                if self.is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._open |= {near, far}
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for here, there in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(here, there), daemon=True).start()

    def _forward(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := here.recv(16384):
                with self._lock:
                    self.sent += len(block)
                if self.is_cut:
                    self._close_all()
                    return
                there.sendall(block)
            there.shutdown(socket.SHUT_WR)

    def _close_all(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()
