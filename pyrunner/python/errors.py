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


def prepare() -> None:
    """Import what ``in_words`` needs, while it can be had.

    An application may use up the descriptors, or clear sys.path. The import takes 2 to 9 ms and
    no request that goes well needs it, so it is made once READY is sent, or the first answer.
    """
    try:
        # The module traceback imports the others when it is used: for source lines (3.13), and for those
        # that are not ASCII (3.11).
        import tokenize  # noqa: F401
        import traceback  # noqa: F401
        import unicodedata  # noqa: F401
    except Exception:  # noqa: S110  # the import of the application has done it already: in_words() does without
        pass


def in_words(err: BaseException, hidden: str = "") -> tuple[str, str]:
    """Return an exception in one line, and its traceback. Whatever is wrong with it, this succeeds.

    Frames of files whose name contains ``hidden`` are left out.
    """
    try:
        described = describe(err)
        if hidden:
            described.stack[:] = [at for at in described.stack if hidden not in at.filename]
        at = described.stack[-1] if described.stack else None
        line = _one_line("".join(described.format_exception_only()), at and (at.filename, at.lineno))
        return line, "".join(described.format())
    except (frames.Stop, frames.GatewayGone):
        raise
    except BaseException as fault:
        return _in_plain_words(err, fault)


def describe(err: BaseException) -> TracebackException:
    """Return the exception and its causes without the runner's own frames."""
    from traceback import TracebackException

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


def _in_plain_words(err: BaseException, fault: BaseException) -> tuple[str, str]:
    """The same without the module traceback, whose import may fail, or which may: that of
    Python 3.8 does if it cannot decode the source.
    """
    places = []
    at = err.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if os.path.dirname(code.co_filename) != RUNNER:
            places.append((code.co_filename, at.tb_lineno, code.co_name))
        at = at.tb_next
    text = type(err).__name__
    try:
        text += ": " + str(err)
    except (frames.Stop, frames.GatewayGone):
        raise
    except BaseException:  # its __str__ raised
        text += ": <unprintable>"
    lines = ['  File "%s", line %d, in %s\n' % place for place in places]
    why = "(no more can be said of it: %s)" % type(fault).__name__
    trace = "Traceback (most recent call last):\n%s%s\n%s\n" % ("".join(lines), text, why)
    return _one_line(text, places[-1][:2] if places else None), trace


def _one_line(text: str, at: tuple[str, int | None] | None) -> str:
    """Return "ZeroDivisionError: division by zero at app.py:12"."""
    text = " ".join(text.split())
    if len(text) > MAX_REASON:
        text = text[:MAX_REASON] + "..."
    if at is not None:
        text += " at %s:%s" % (_short(at[0]), at[1])
    return text


def _short(path: str) -> str:
    """Return the path as seen from the working directory, if it is below it."""
    try:
        here = os.getcwd() + os.sep
    except OSError:
        return path
    return path[len(here) :] if path.startswith(here) else path
