"""wsgi.errors, and how an application's exceptions are put into words."""

from __future__ import annotations

import os
import sys

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traceback import TracebackException
    from typing import Iterable

RUNNER = os.path.dirname(__file__)  # files in it are not the application's
MAX_REASON = 500  # characters of a one-line reason


class Errors:
    """wsgi.errors of one request: sent at each line's end, at flush, and at the request's end.

    Once the request is over (an application may keep it, in a thread or a logging
    handler) the text goes to stderr, which is a log too.
    """

    __slots__ = ("_channel", "_request", "pending")

    def __init__(self, channel: frames.Channel, request: int) -> None:
        self._channel = channel
        self._request = request
        self.pending = ""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(
                "wsgi.errors takes str, not %s: decode it, for example text.decode() (PEP 3333)" % type(text).__name__
            )
        self.pending += text
        if "\n" in text or len(self.pending) > frames.MAX_TEXT:
            self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        text, self.pending = self.pending, ""
        if not text:
            return
        sent = self._channel.send_within(self._request, frames.text_frames(frames.ERRORS, self._request, text))
        if not sent and sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


def describe(err: BaseException) -> TracebackException:
    """Return the exception and its causes without the runner's own frames."""
    from traceback import TracebackException  # 6 ms, needed by no request that goes well

    described = TracebackException.from_exception(err)
    chain = [described]
    seen = set()
    while chain:
        each = chain.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        own = [at for at in each.stack if os.path.dirname(at.filename) != RUNNER]
        each.stack[:] = own
        chain += [link for link in (each.__cause__, each.__context__) if link is not None]
    return described


def one_line(described: TracebackException) -> str:
    """Return "ZeroDivisionError: division by zero at app.py:12"."""
    text = " ".join("".join(described.format_exception_only()).split())
    if len(text) > MAX_REASON:
        text = text[:MAX_REASON] + "..."
    if described.stack:
        at = described.stack[-1]
        text += " at %s:%s" % (_short(at.filename), at.lineno)
    return text


def _short(path: str) -> str:
    """Return the path as seen from the working directory, if it is below it."""
    try:
        here = os.getcwd() + os.sep
    except OSError:
        return path
    return path[len(here) :] if path.startswith(here) else path
