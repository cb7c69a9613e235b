"""The frames of PROTOCOL.md, and the socket that carries them."""

from __future__ import annotations

import os
from _socket import MSG_DONTWAIT, MSG_PEEK, SCM_RIGHTS, SOL_SOCKET, socket  # the module "socket" takes 5 ms to import
from _thread import allocate_lock
from marshal import loads
from select import POLLIN, poll
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Tuple

    Frame = Tuple[int, int, int, memoryview]

VERSION = 1

INIT, REQUEST, BODY, CANCEL = 0x01, 0x02, 0x03, 0x04
HELLO, READY, FAILED, HEADERS, DATA, FILE, ERRORS, READ, END, WARN, IMPORTED = range(0x81, 0x8C)

FORK, REAP = 0x10, 0x11  # of a template, with its answers
FORKED, REFUSED, REAPED = range(0x90, 0x93)

MORE, FILTER, CHANGES, REMOVES = 1, 2, 4, 8  # flags of REQUEST; MORE is also one of FORK
STREAMS = MORE | FILTER  # those that tell how the bodies come
SECRETS = ("HTTP_COOKIE", "HTTP_AUTHORIZATION")  # are in no base
LAST, BROKEN = 1, 2  # flags of BODY; LAST is also one of HEADERS, DATA and FILE
OF_DATA = 4  # flag of BODY and READ: of the data stream of a FastCGI Filter
END_FAILED, END_CANCELLED = 1, 2  # flags of END
REFUSED_ALWAYS = 1  # flag of REFUSED

HEAD = Struct("<BBxxII")  # type, flags, length of what follows this field, request id
REQUEST_HEAD = Struct("<BBxxIII")  # the same, then the length of the environ
HELLO_HEAD = Struct("<HI")
FILE_RANGE = Struct("<QQ")
READ_SIZE = Struct("<I")
DESCRIPTOR = Struct("=i")

LENGTH_END = 8  # the length field counts the bytes behind it
ID_SIZE = 4

MAX_DATA = 1 << 20  # bytes of a body in one frame; the gateway refuses longer ones
MAX_READ = 256 << 10  # bytes of a request's body that one READ may ask for
MAX_TEXT = 32 << 10  # bytes of text in one frame: bounds what one log record can be
COPY_BELOW = 32 << 10  # joining a block shorter than this costs less than a scatter list

MAX_PACKET = 128 << 10  # bytes of a REQUEST that comes as one packet; a longer one comes on the stream
TIDY_EVERY = 64  # requests; then the frames that came too late for theirs are dropped
DONE_WAIT = 20  # milliseconds after the first answer in which the gateway may say that there is no more
_FIRST_BUFFER = 64 << 10  # bytes; holds nearly every frame, and grows for longer ones

_NO_CHANGES = REQUEST_HEAD.size + 2  # where the environ ends if it is an empty dict

pack = HEAD.pack


def frame(kind: int, flags: int, request: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return pack(kind, flags, ID_SIZE + len(payload), request) + payload


def text_bytes(text: str) -> bytes:
    """Return UTF-8 whatever the text holds: lone surrogates come out escaped."""
    return text.encode("utf-8", "backslashreplace")


def text_frames(kind: int, request: int, text: str) -> bytes:
    """Return the frames that carry a text, each of them whole UTF-8 characters."""
    data = text_bytes(text)
    out = []
    start = 0
    while len(data) - start > MAX_TEXT:
        stop = start + MAX_TEXT
        while data[stop] & 0xC0 == 0x80:  # not within a character
            stop -= 1
        out.append(frame(kind, 0, request, data[start:stop]))
        start = stop
    out.append(frame(kind, 0, request, data[start:]))
    return b"".join(out)


def text_frame(kind: int, flags: int, request: int, text: str) -> bytes:
    """Return one frame that carries a text, cut to what one frame takes."""
    data = text_bytes(text)
    if len(data) > MAX_TEXT:
        data = data[:MAX_TEXT].decode("utf-8", "ignore").encode()
    return frame(kind, flags, request, data)


class Stop(BaseException):
    """SIGTERM came: leave, whatever is running. It is no error of the application."""


class GatewayGone(BaseException):
    """The gateway closed the slot's socket, so nobody is left to answer.

    Not an Exception: an application's ``except Exception`` must not keep the slot going.
    """


class RequestTimeout(Exception):
    """The request took longer than --timeout, and its client has been answered (see raising.py).

    Its argument is the gateway's reason, also where the interpreter makes it from the bare type.
    """

    reason = "request took longer than --timeout"

    def __init__(self, *args: object) -> None:
        super().__init__(*(args or (self.reason,)))


def socket_of(fd: int) -> socket:
    """Return the socket of an inherited descriptor."""
    os.set_inheritable(fd, False)
    sock = socket(fileno=fd)
    sock.setblocking(True)
    return sock


class Channel:
    """A slot's sockets: reads the gateway's frames and writes whole ones.

    Any thread may send. One at a time may receive; ``receiving`` is the lock for that,
    needed only while the application can pull a body (see body.py).
    """

    __slots__ = (
        "_arrived",
        "_base",
        "_buffer",
        "_end",
        "_forked",
        "_latest",
        "_packet",
        "_packets",
        "_sending",
        "_sock",
        "_start",
        "_untidy",
        "_view",
        "current",
        "receiving",
    )

    def __init__(self, fd: int) -> None:
        self._sock = socket_of(fd)
        arrival = poll()
        arrival.register(fd, POLLIN)
        self._arrived = arrival.poll  # asked before each block: an exception of a socket's own would cost more
        self._packets: socket | None = None  # where requests come, each a packet; None: on the stream
        self._packet = memoryview(b"")
        self._latest = 0  # id of the last request
        self._untidy = 0  # requests since the stream was tidied
        self._buffer = bytearray(_FIRST_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # the part of the buffer that is not yet parsed
        self._sending = allocate_lock()
        self._forked = False
        self.receiving = allocate_lock()
        self.current = 0  # id of the request that is being answered
        self._base: dict[str, Any] = {}  # what the next environ is a changed copy of

    def take_requests_from(self, fd: int) -> None:
        """Receive requests as packets of that socket from now on."""
        self._packets = socket_of(fd)
        self._packet = memoryview(bytearray(MAX_PACKET))

    # Receiving

    def receive(self) -> Frame | None:
        """Wait for the next frame: type, flags, request id, payload. None at the end.

        The payload is a view that the next call overwrites.
        """
        while True:
            got = self._parse()
            if got is not None:
                return got
            if not self._fill():
                return None

    def poll(self) -> Frame | None:
        """Return the next frame if it has already come."""
        got = self._parse()
        if got is None:
            if not self._arrived(0):
                return None
            self._fill()
            got = self._parse()
        return got

    def peek_cancel(self, request: int, begin: str) -> str | None:
        """Return the reason of a CANCEL for the request that has come and was not read yet,
        if it begins so. There may be another one before it.

        It takes nothing away, so any thread may ask at any time.
        """
        try:
            fresh = self._sock.recv(_FIRST_BUFFER, MSG_PEEK | MSG_DONTWAIT)
        except OSError:  # nothing has come
            fresh = b""
        data = bytes(self._view[self._start : self._end]) + fresh
        start = 0
        while start + HEAD.size <= len(data):
            kind, _, length, number = HEAD.unpack_from(data, start)
            stop = start + LENGTH_END + length
            if kind == CANCEL and number == request and stop <= len(data):
                reason = str(data[start + HEAD.size : stop], "utf-8", "replace")
                if reason.startswith(begin):
                    return reason
            start = stop
        return None

    def is_done(self) -> bool:
        """Look for a moment whether the gateway wants no more."""
        source = self._packets or self._sock
        look = poll()
        look.register(source, POLLIN)
        try:
            return bool(look.poll(DONE_WAIT)) and not source.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except OSError:
            return False  # the next request will tell

    def receive_request(self) -> tuple[int, dict[str, Any], bytes] | None:
        """Wait for a request: flags (STREAMS), environ, first bytes of the body. None at the end.

        Its id becomes ``current``. A frame that still belongs to the request before
        (a CANCEL that crossed its END) is dropped.
        """
        if self._packets is not None:
            packet = self._packet
            self._untidy += 1
            if self._untidy >= TIDY_EVERY:
                self._tidy()
            try:
                got = self._packets.recv_into(packet)
            except OSError as err:
                raise GatewayGone(err) from None
            if not got:
                return None
            if got >= REQUEST_HEAD.size:
                _, flags, _, self._latest, size = REQUEST_HEAD.unpack_from(packet)
                self.current = self._latest
                size += REQUEST_HEAD.size
                first = bytes(packet[size:got]) if size < got else b""
                if flags & CHANGES and size == _NO_CHANGES:
                    return flags & STREAMS, self._base.copy(), first
                return flags & STREAMS, self._environ(flags, loads(packet[REQUEST_HEAD.size : size])), first
            # A bare head says that the request is too long for a packet.
        while True:
            frame = self.receive()
            if frame is None:
                return None
            kind, flags, request, payload = frame
            if kind == REQUEST:
                self.current = self._latest = request
                size = 4 + int.from_bytes(payload[:4], "little")
                return flags & STREAMS, self._environ(flags, loads(payload[4:size])), bytes(payload[size:])

    def _tidy(self) -> None:
        """Drop frames of requests that have ended.

        Nothing else reads the stream while requests come as packets, and a gateway that
        cannot send another CANCEL would wait.
        """
        self._untidy = 0
        while True:
            got = self.poll()
            if got is None:
                return
            if got[2] > self._latest:  # a CANCEL that was faster than its request: it stays
                self._start -= HEAD.size + len(got[3])
                return

    def _environ(self, flags: int, sent: dict[str, Any]) -> dict[str, Any]:
        """Return the environ of a request, of which this dict was sent."""
        if not flags & CHANGES:
            self._base = base = sent.copy()
            for name in SECRETS:
                base.pop(name, None)
            return sent
        environ = self._base.copy()
        environ.update(sent)
        if flags & REMOVES:
            for name, value in sent.items():
                if value is None:
                    del environ[name]
        return environ

    def _parse(self) -> Frame | None:
        start, end = self._start, self._end
        if end - start < HEAD.size:
            self._make_room(HEAD.size)
            return None
        kind, flags, length, request = HEAD.unpack_from(self._buffer, start)
        stop = start + LENGTH_END + length
        if stop > end:
            self._make_room(LENGTH_END + length)
            return None
        self._start = stop
        return kind, flags, request, self._view[start + HEAD.size : stop]

    def _make_room(self, size: int) -> None:
        """See to it that a frame of that size fits behind _start."""
        start, end = self._start, self._end
        if start + size <= len(self._buffer):
            return
        held = bytes(self._view[start:end])
        if size > len(self._buffer):
            self._buffer = bytearray(size)
            self._view = memoryview(self._buffer)
        self._view[: len(held)] = held
        self._start, self._end = 0, len(held)

    def _fill(self) -> int:
        try:
            got = self._sock.recv_into(self._view[self._end :])
        except OSError as err:
            raise GatewayGone(err) from None
        self._end += got
        return got

    # Sending

    def send(self, data: bytes) -> None:
        """Send whole frames."""
        if self._forked:
            os._exit(0)
        with self._sending:
            try:
                self._sock.sendall(data)
            except OSError as err:
                raise GatewayGone(err) from None

    def send_long(self, head: bytes, block: Any) -> None:
        """Send a frame whose payload ends in a long block of bytes, without copying it."""
        if self._forked:
            os._exit(0)
        with self._sending:
            try:
                sent = self._sock.sendmsg((head, block))
                if sent < len(head):
                    self._sock.sendall(head[sent:])
                    sent = len(head)
                sent -= len(head)
                if sent < len(block):
                    self._sock.sendall(memoryview(block)[sent:])
            except OSError as err:
                raise GatewayGone(err) from None

    def send_with_descriptor(self, data: bytes, fd: int) -> None:
        """Send a frame and, with its first byte, a file descriptor."""
        if self._forked:
            os._exit(0)
        with self._sending:
            try:
                sent = self._sock.sendmsg((data,), ((SOL_SOCKET, SCM_RIGHTS, DESCRIPTOR.pack(fd)),))
                self._sock.sendall(data[sent:])
            except OSError as err:
                raise GatewayGone(err) from None

    def send_within(self, request: int, data: bytes) -> bool:
        """Send frames of a request, unless that is over by now.

        For what an application may keep and use too late, or in a process it forked.
        """
        if self._forked:
            return False
        with self._sending:
            if self.current != request:
                return False
            try:
                self._sock.sendall(data)
            except OSError as err:
                raise GatewayGone(err) from None
        return True

    def send_end(self, data: bytes) -> None:
        """Send frames of which the last is END."""
        if self._forked:
            os._exit(0)
        with self._sending:
            self.current = 0
            try:
                self._sock.sendall(data)
            except OSError as err:
                raise GatewayGone(err) from None

    def before_end(self, request: int, call: Callable[[], bool]) -> bool:
        """Call, and return what that does, if no frame is being sent and END of the
        request is none of those that were.
        """
        if not self._sending.acquire(False):
            return False
        try:
            return self.current == request and call()
        finally:
            self._sending.release()

    def close(self) -> None:
        """Close the socket, at the latest at the process's end.

        CPython 3.8 crashes at its exit if it finds a socket object that is not closed.
        """
        self._sock.close()
        if self._packets is not None:
            self._packets.close()

    def leave_if_forked(self, status: object) -> None:
        """End a process that the application forked and that has come back from it."""
        if self._forked:
            os._exit(status if isinstance(status, int) else int(status is not None))

    def after_fork_in_child(self) -> None:
        """Make sure that a process which the application forked can never answer."""
        self._forked = True
        self.close()
