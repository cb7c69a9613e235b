"""wsgi.input when the body did not come whole with the request: pulled as it is read."""

from __future__ import annotations

from io import BufferedReader, RawIOBase

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .response import Response


class ClientGone(ConnectionAbortedError):
    """Nobody waits for the response any more."""


def pulled(response: Response, first: bytes, flag: int = 0) -> BufferedReader:
    """Return a stream that begins with ``first`` and asks the gateway for the rest.

    A BufferedReader has PEP 3333's methods in C and returns short only at the end.
    """
    return BufferedReader(Pulled(response, first, flag), frames.MAX_READ)


class Pulled(RawIOBase):
    """The unbuffered stream: each readinto is one READ, answered by one BODY."""

    def __init__(self, response: Response, first: bytes, flag: int) -> None:
        self._response = response
        self._first = memoryview(first)
        self._flag = flag  # OF_DATA for the second stream of a Filter
        self._ended = False
        self._broken = ""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        if self._first:
            got = min(len(view), len(self._first))
            view[:got] = self._first[:got]
            self._first = self._first[got:]
            return got
        if self._ended or not len(view):
            return 0
        if self._broken:
            raise OSError(self._broken)
        with self._response.channel.receiving:
            return self._pull(view)

    def readall(self) -> bytes:
        out: list[bytes] = []
        block = bytearray(frames.MAX_READ)
        while True:
            got = self.readinto(block)
            if not got:
                return b"".join(out)
            out.append(bytes(block[:got]))

    def _pull(self, view: memoryview) -> int:
        channel, request = self._response.channel, self._response.request
        ask = frames.READ_SIZE.pack(min(len(view), frames.MAX_READ))
        ask = frames.frame(frames.READ, self._flag, request, ask)
        while True:
            if self._response.cancelled is not None:
                raise ClientGone("the client is gone: " + self._response.cancelled)
            if self._response.complete or not channel.send_within(request, ask):
                raise OSError("the response is complete, so the rest of the request's body is gone")
            flags, payload = self._await_body()
            if flags & frames.BROKEN:
                self._broken = "the request's body ended early: " + str(payload, "utf-8", "replace")
                raise OSError(self._broken)
            self._ended = flags & frames.LAST != 0
            if payload or self._ended:
                view[: len(payload)] = payload
                return len(payload)

    def _await_body(self) -> tuple[int, memoryview]:
        response = self._response
        while True:
            got = response.channel.receive()
            if got is None:
                raise frames.GatewayGone("end of stream")
            kind, flags, request, payload = got
            if request != response.request:
                continue
            if kind == frames.CANCEL:
                response.cancelled = str(payload, "utf-8", "replace")
                raise ClientGone("the client is gone: " + response.cancelled)
            if kind == frames.BODY:
                return flags, payload
