"""The response of one request: start_response, write, and the body's way to the gateway."""

from __future__ import annotations

from . import frames
from .body import ClientGone
from .files import FileWrapper, file_part
from .frames import DATA, END, HEADERS, LAST, WARN, pack
from .headers import render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Callable, Iterable, Optional, Tuple, Type, Union

    ExcInfo = Union[Tuple[Type[BaseException], BaseException, Optional[TracebackType]], Tuple[()]]

_ID = frames.ID_SIZE
_generator = type(_ for _ in ())


class ShortBody(Exception):
    """The body is shorter than its Content-Length."""


class Response:
    """What an application has said about its response, and what of it was sent."""

    __slots__ = (
        "_block",
        "_can_have_body",
        "_head_request",
        "_left",
        "_length",
        "_surplus",
        "_written",
        "cancelled",
        "channel",
        "complete",
        "request",
        "sent",
        "started",
    )

    def __init__(self, channel: frames.Channel, request: int, head_request: bool) -> None:
        self.channel = channel
        self.request = request
        self.started = False  # start_response was called
        self.sent = False  # HEADERS is sent: what the client sees cannot be changed
        self.complete = False  # LAST is sent
        self.cancelled: str | None = None  # the reason, once the client is gone
        self._head_request = head_request
        self._block: bytes | None = None  # the status and fields in HEADERS' form
        self._can_have_body = True
        self._length: int | None = None
        self._left = 0  # bytes that Content-Length still asks for
        self._surplus = False  # a warning about body bytes that are not sent was given
        self._written = False

    # The application's side

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333, "The start_response() Callable"."""
        if exc_info:
            self._restart(exc_info)
        elif self.started:
            raise RuntimeError(
                "start_response() was called twice: after the first call, even one that raised, "
                "pass exc_info=sys.exc_info() to replace the status (PEP 3333)"
            )
        self.started = True
        self._block = None
        self._block, self._can_have_body, self._length = render(status, headers)
        if self._length is not None:
            self._left = self._length
        return self.write

    def _restart(self, exc_info: ExcInfo) -> None:
        if not isinstance(exc_info, tuple) or len(exc_info) != 3 or not isinstance(exc_info[1], BaseException):
            raise TypeError("exc_info must be the tuple that sys.exc_info() returns (PEP 3333)")
        if self.sent:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = ()  # the traceback refers to this frame

    def write(self, block: bytes) -> None:
        """The callable that start_response returns: sends the block before it returns."""
        if not isinstance(block, bytes):
            raise _not_bytes("write() takes", block)
        if self._block is None:
            raise RuntimeError("write() was called although start_response() raised: call that again with exc_info")
        if self.channel.current != self.request:
            raise RuntimeError("write() was called after the end of its request")
        self._written = True
        if block and not self._put(block) and self.cancelled is not None:
            raise ClientGone("the client is gone: " + self.cancelled)

    # The gateway's side

    def send_whole(self, block: bytes, end: bytes) -> bool:
        """Send a response with a body of this one block, and END, at once, if it is an
        ordinary one; tell whether it was.
        """
        head = self._block
        if head is None or self._written or self._head_request or not self._can_have_body:
            return False
        if not isinstance(block, bytes):
            return False
        size = len(block)
        if not 0 < size < frames.COPY_BELOW:
            return False
        if self._length is None:
            head += b"Content-Length: %d\n" % size
        elif self._length != size:
            return False
        request = self.request
        self.sent = self.complete = True
        self.channel.send_end(
            b"".join(
                (
                    pack(HEADERS, 0, _ID + len(head), request),
                    head,
                    pack(DATA, LAST, _ID + size, request),
                    block,
                    end,
                )
            )
        )
        return True

    def send(self, result: Iterable[bytes]) -> None:
        """Send the body that the application returned."""
        if isinstance(result, FileWrapper) and self._send_file(result):
            return
        for block in _iterate(result):
            if not isinstance(block, bytes):
                raise _not_bytes("WSGI body blocks must be", block)
            if not block:
                continue
            if not self.sent and self._length is None and _count(result) == 1:
                self._set_length(len(block))
            if not self._put(block):
                return
        self._finish(result)

    def _put(self, block: bytes) -> bool:
        """Send a block that is not empty; tell whether another one may follow."""
        if self.complete:
            self._warn_surplus(len(block))
            return False
        if self.sent and self.client_gone():
            return False
        if self._head_request or not self._can_have_body:
            self._send_head(LAST)
            self._warn_surplus(len(block))
            return False
        head = b"" if self.sent else self._head(0)
        flags = 0
        surplus = 0
        if self._length is not None:
            surplus = len(block) - self._left
            if surplus > 0:
                block = block[: self._left]
            flags = LAST if surplus >= 0 else 0
            self._left -= len(block)
        self._send_data(head, block, flags)
        if surplus > 0:
            self._warn_surplus(surplus)
            return False
        return self.cancelled is None

    def _send_data(self, head: bytes, block: bytes, flags: int) -> None:
        """Send HEADERS, if not yet sent, and a block as one or more DATA frames."""
        self.sent = True
        size = len(block)
        if size < frames.COPY_BELOW:
            self.channel.send(b"".join((head, pack(DATA, flags, _ID + size, self.request), block)))
            self.complete = flags == LAST
            return
        view = memoryview(block)
        for start in range(0, size, frames.MAX_DATA):
            if start and self.client_gone():
                return
            part = view[start : start + frames.MAX_DATA]
            last = flags if start + len(part) == size else 0
            self.channel.send_long(head + pack(DATA, last, _ID + len(part), self.request), part)
            head = b""
        self.complete = flags == LAST

    def _finish(self, result: Iterable[bytes]) -> None:
        """See to the end of a body of which all blocks are sent."""
        if self.complete:
            return
        wants_body = self._can_have_body and not self._head_request
        if wants_body and self._length is not None and self._left:
            raise ShortBody(
                "the body has %d bytes but Content-Length says %d" % (self._length - self._left, self._length)
            )
        if not self.sent:
            if self._length is None and _count(result) in (0, 1):
                self._set_length(0)
            self._send_head(LAST)
        elif type(result) is not _generator and hasattr(result, "close"):
            # close() may take long; the client need not wait for it.
            self.channel.send(frames.frame(DATA, LAST, self.request))
            self.complete = True

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Let the gateway send the file itself, if it is a real one."""
        part = file_part(wrapper.filelike)
        if part is None:
            return False
        fd, position, count = part
        if not self.sent and self._length is None:
            self._set_length(count)
        if self._length is not None:
            count = min(count, self._left)
        if self._head_request or not self._can_have_body:
            count = 0
        if count:
            if not self.sent:
                self._send_head(0)
            self._left -= count
            last = 0 if self._length is not None and self._left else LAST
            file_range = frames.FILE_RANGE.pack(position, count)
            self.channel.send_with_descriptor(frames.frame(frames.FILE, last, self.request, file_range), fd)
            self.complete = last == LAST
        self._finish(wrapper)
        return True

    def _set_length(self, length: int) -> None:
        """Add a Content-Length, where HTTP allows one (RFC 9110, section 8.6)."""
        if self._can_have_body and not self._written and self._block is not None:
            self._block += b"Content-Length: %d\n" % length
            self._length = self._left = length

    def _head(self, flags: int) -> bytes:
        if self._block is None:
            what = "raised, so it must be called again with exc_info" if self.started else "was not called"
            raise RuntimeError(
                "start_response() %s: call it before the first block of the body that is not empty (PEP 3333)" % what
            )
        return frames.frame(HEADERS, flags, self.request, self._block)

    def _send_head(self, flags: int) -> None:
        self.channel.send(self._head(flags))
        self.sent = True
        self.complete = flags == LAST

    def _warn_surplus(self, size: int) -> None:
        if self._surplus:
            return
        self._surplus = True
        if self._head_request:
            why = "a response to HEAD has no body"
        elif not self._can_have_body:
            why = "a response with this status has no body"
        else:
            why = "the body is longer than its Content-Length of %d" % (self._length or 0)
        self.warn("%d bytes of the body, or more, were dropped: %s" % (size, why))

    def warn(self, text: str) -> None:
        """Tell the log of a fault that does not stop the request."""
        self.channel.send(frames.text_frame(WARN, 0, self.request, text))

    def client_gone(self) -> bool:
        """Look whether a CANCEL has come."""
        if self.cancelled is not None:
            return True
        receiving = self.channel.receiving
        if not receiving.acquire(False):
            return False  # a thread of the application reads the body: it will see it
        try:
            got = self.channel.poll()
            while got is not None and got[2] != self.request:  # too late for the request before
                got = self.channel.poll()
            if got is not None and got[0] == frames.CANCEL:
                self.cancelled = str(got[3], "utf-8", "replace")
        finally:
            receiving.release()
        return self.cancelled is not None

    def send_page(self, page: bytes) -> None:
        """Send an error page in place of the response that failed."""
        head = b"500 Internal Server Error\nContent-Type: text/html; charset=utf-8\nContent-Length: %d\n" % len(page)
        if self._head_request:
            self.channel.send(frames.frame(HEADERS, LAST, self.request, head))
            self.sent = self.complete = True
        else:
            self._send_data(frames.frame(HEADERS, 0, self.request, head), page, LAST)

    def end(self, flags: int, reason: str) -> None:
        """Send END: the slot is free for the next request."""
        self.channel.send_end(frames.text_frame(END, flags, self.request, reason))


def _iterate(result: Any) -> Iterable[Any]:
    if isinstance(result, (bytes, str)):
        raise TypeError(
            "the application returned %s: return a list of bytes blocks, for example [body%s] (PEP 3333)"
            % (type(result).__name__, ".encode('utf-8')" if isinstance(result, str) else "")
        )
    if result is None:
        raise TypeError(
            "the application returned None: return an iterable of bytes blocks, for example [body]; "
            "is a 'return' missing? (PEP 3333)"
        )
    try:
        blocks: Iterable[Any] = iter(result)
        return blocks
    except TypeError:
        if hasattr(result, "__await__"):
            raise TypeError(
                "the application is a coroutine, so it is ASGI and not WSGI: wrap it in an adapter such as a2wsgi"
            ) from None
        if hasattr(type(result), "__iter__"):
            raise
        raise TypeError(
            "the application returned %s, which is not iterable: return an iterable of bytes blocks, "
            "for example [body] (PEP 3333)" % type(result).__name__
        ) from None


def _count(result: Any) -> int:
    """Return the number of blocks, or -1 if the iterable does not tell."""
    try:
        return len(result)
    except Exception:  # whatever an application's __len__ raises: it is only asked for a hint
        return -1


def _not_bytes(what: str, block: object) -> TypeError:
    if isinstance(block, str):
        mend = "encode it, for example 'text'.encode('utf-8')"
    elif isinstance(block, (bytearray, memoryview)):
        mend = "use bytes(block)"
    elif isinstance(block, int):
        mend = "a bytes object was iterated where a list of them was meant: return [body]"
    else:
        mend = "convert it"
    return TypeError("%s bytes, not %s: %s (PEP 3333)" % (what, type(block).__name__, mend))
