"""--raise-on-timeout: an exception in requests that take too long, when a signal asks for it.

Whether a thread runs the application's code is read off its stack, so a request
costs nothing that goes well. While the runner's own code runs, nothing is raised: a frame
that is half sent, or a request that ended just now, must not be hit. If the application called
that code, the exception comes when it returns.
"""

from __future__ import annotations

import os
import signal
import sys
from _thread import get_ident, start_new_thread
from time import sleep

from . import files, response, slot, watch
from .errors import RUNNER
from .frames import RequestTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable

    from .frames import Channel
    from .response import Response

REASON = "request took longer than --timeout"  # how the gateway's CANCEL begins
AGAIN = 0.02  # seconds until a thread in the runner's code is looked at again

_ANSWER: Any = slot.Slot._answer.__code__
# The runner's functions that call the application's.
_CALLERS: frozenset[Any] = frozenset(
    (
        _ANSWER,
        slot._close.__code__,
        response.Response.send.__code__,
        response._iterate.__code__,
        response._count.__code__,
        files.FileWrapper.__next__.__code__,
        watch.Watched.__call__.__code__,
        watch.Body.__iter__.__code__,
        watch.Body.__len__.__code__,
        watch.Body.close.__code__,
    )
)


class Raiser:
    """Handles the signal."""

    def __init__(self, number: int, threads: bool) -> None:
        self._number = number
        self._raised: dict[Channel, int] = {}  # the last request in which it was
        self._asking = False
        # Now, for the application may use up the descriptors; it takes 1 ms, for threads only.
        self._raise_in = _raise_in_threads() if threads else None
        signal.signal(number, self._asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        here = get_ident()
        again = False
        for thread in sys._current_frames():
            if thread != here:
                again |= self._look(thread)
        found, in_app = _answered_in(frame)
        overdue = found is not None and self._overdue(found)
        if found is not None and overdue:
            if in_app or _raise_on_return(frame):
                self._raised[found.channel] = found.request
            else:
                again = True
        if again:
            self._ask_again()
        if overdue and in_app:
            raise RequestTimeout

    def _look(self, thread: int) -> bool:
        """Raise in another thread if its request is overdue; tell whether to try again."""
        found, _ = _answered_in(sys._current_frames().get(thread))
        if found is None or not self._overdue(found):
            return False
        if self._raise_in is None:
            self._raise_in = _cannot_raise()
        # Looked at anew: the thread may have run since.
        same, in_app = _answered_in(sys._current_frames().get(thread))
        if same is not found:
            return False
        if in_app and found.channel.before_end(found.request, lambda: self._raise_in(thread)):  # type: ignore[misc]
            self._raised[found.channel] = found.request
            return False
        return True

    def _overdue(self, found: Response) -> bool:
        """Tell whether the gateway has cancelled a request for its time, and nothing was raised in it."""
        channel = found.channel
        if self._raised.get(channel) == found.request:
            return False
        reason = found.cancelled
        if reason is None or not reason.startswith(REASON):  # the client may have gone before
            reason = channel.peek_cancel(found.request, REASON)
        if reason is None:
            return False
        found.cancelled = RequestTimeout.reason = reason
        return True

    def _ask_again(self) -> None:
        if self._asking:
            return
        self._asking = True
        try:
            start_new_thread(self._signal_later, ())
        except RuntimeError:  # no more threads can be had: SIGTERM follows anyway
            self._asking = False

    def _signal_later(self) -> None:
        sleep(AGAIN)
        self._asking = False
        os.kill(os.getpid(), self._number)


def _answered_in(frame: FrameType | None) -> tuple[Response | None, bool]:
    """Return the response that a thread is at work on, and whether it runs the application's code."""
    in_app = None
    at = frame
    while at is not None:
        code = at.f_code
        if in_app is None and _own(at):
            in_app = code in _CALLERS and at is not frame
        if code is _ANSWER:
            return at.f_locals.get("response"), bool(in_app)
        at = at.f_back
    return None, False


def _own(frame: FrameType) -> bool:
    return os.path.dirname(frame.f_code.co_filename) == RUNNER


def _raise_on_return(frame: FrameType | None) -> bool:
    """Raise in this thread when the runner's function has returned to the application's; False if that cannot be."""
    while frame is not None and _own(frame):
        frame = frame.f_back
    if not _answered_in(frame)[1] or sys.gettrace() is not None:
        return False
    frame.f_trace = _raise_now  # type: ignore[union-attr]
    sys.settrace(_trace_nothing)  # or f_trace is not called
    return True


def _raise_now(frame: FrameType, event: str, argument: object) -> None:
    """What a debugger would call before the next line."""
    sys.settrace(None)
    frame.f_trace = None
    raise RequestTimeout


def _trace_nothing(frame: FrameType, event: str, argument: object) -> None:
    return


def _raise_in_threads() -> Callable[[int], bool] | None:
    """Return the function that raises in the thread of that number, if the interpreter has one."""
    try:
        from ctypes import c_ulong, py_object, pythonapi

        set_exception = pythonapi.PyThreadState_SetAsyncExc
    except (ImportError, AttributeError):
        return None
    return lambda thread: bool(set_exception(c_ulong(thread), py_object(RequestTimeout)))


def _cannot_raise() -> Callable[[int], bool]:
    """Say it, and return what takes the place of that function."""
    if sys.stderr is not None:
        sys.stderr.write(
            "this interpreter cannot raise an exception in another thread: --raise-on-timeout "
            "has no effect with --threads\n"
        )
    return lambda thread: True
