"""The loop of one slot: receive a request, call the application, send the response."""

from __future__ import annotations

from io import BytesIO

from . import body, frames
from .errors import Errors, in_words
from .files import FileWrapper
from .frames import END, END_CANCELLED, END_FAILED, GatewayGone, RequestTimeout, Stop, pack
from .response import Response, ShortBody

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    Application = Callable[[Dict[str, Any], Callable[..., Any]], Any]

_lists = frozenset((list, tuple))  # of exactly these types it is known that they have no close()


class Slot:
    """Answers the requests of one channel, one after the other."""

    __slots__ = ("_app", "_channel", "_page", "stopping")

    def __init__(
        self, channel: frames.Channel, app: Application, page: Callable[[str, str], bytes] | None = None
    ) -> None:
        self._channel = channel
        self._app = app
        self._page = page  # makes the error page of --debug
        self.stopping = False

    def run(self, prepare: Callable[[], None] | None = None) -> None:
        """Serve until the gateway wants no more. Raises Stop when SIGTERM comes.

        ``prepare`` is called after the first request, if there may be another: behind CGI each
        worker has one, and the client waits for its end.
        """
        channel, answer = self._channel, self._answer
        try:
            if prepare is not None:
                got = channel.receive_request()
                if got is None:
                    return
                answer(*got)
                got = None
                if channel.is_done():
                    return
                prepare()
            while not self.stopping:
                got = channel.receive_request()
                if got is None:
                    return
                answer(*got)
                got = None  # an idle slot holds no request's memory
        except GatewayGone:
            return
        except RequestTimeout:
            # It came too late for its request, in a thread. How much of an answer is sent
            # cannot be told, and the gateway replaces this worker anyway.
            return

    def _answer(self, flags: int, environ: dict[str, Any], first: bytes) -> None:
        channel = self._channel
        request = channel.current
        response = Response(channel, request, environ.get("REQUEST_METHOD") == "HEAD")
        environ["wsgi.input"] = body.pulled(response, first) if flags & frames.MORE else BytesIO(first)
        environ["wsgi.errors"] = errors = Errors(channel, request)
        environ["wsgi.file_wrapper"] = FileWrapper
        if flags & frames.FILTER:
            environ["fcgi.data"] = body.pulled(response, b"", frames.OF_DATA)
        try:
            result = self._app(environ, response.start_response)
            if (
                type(result) in _lists
                and len(result) == 1
                and not flags
                and not errors.pending
                and response.send_whole(result[0], pack(END, 0, frames.ID_SIZE, request))
            ):
                return
        except (Stop, GatewayGone):
            raise
        except BaseException as err:  # SystemExit and KeyboardInterrupt too: the worker lives
            if isinstance(err, RequestTimeout) and channel.current != request:
                raise
            if isinstance(err, SystemExit):
                channel.leave_if_forked(err.code)
            self._end(response, errors, flags, err)
            return
        self._deliver(response, errors, flags, result)

    def _deliver(self, response: Response, errors: Errors, flags: int, result: Any) -> None:
        """Send a body, then close it, whatever happened, once."""
        try:
            failure = _caught(response.send, result)
        except BaseException:
            _caught(_close, result)
            raise
        late = _caught(_close, result)
        if late is not None:
            reason, trace = in_words(late)
            errors.write(trace)
            response.warn("close() of the body raised " + reason)
        self._end(response, errors, flags, failure)

    def _end(self, response: Response, errors: Errors, flags: int, failure: BaseException | None) -> None:
        end_flags, reason = 0, ""
        if response.cancelled is not None:
            end_flags, reason = END_CANCELLED, response.cancelled
            if failure is not None and not isinstance(failure, ConnectionError):
                errors.write(in_words(failure)[1])
        elif failure is not None:
            end_flags, reason = self._fail(response, errors, failure)
        errors.flush()
        if flags:
            with self._channel.receiving:  # until no thread of the application waits for BODY
                response.end(end_flags, reason)
        else:
            response.end(end_flags, reason)

    def _fail(self, response: Response, errors: Errors, failure: BaseException) -> tuple[int, str]:
        """Log an application's failure; return END's flags and reason."""
        if isinstance(failure, ShortBody):
            return END_FAILED, str(failure)
        reason, trace = in_words(failure)
        errors.write(trace)
        if response.complete:
            response.warn("the application raised after its response was complete: " + reason)
            return 0, ""
        if self._page is not None and not response.sent:
            response.send_page(self._page(reason, trace))
        return END_FAILED, reason


def _close(result: Any) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _caught(call: Callable[[Any], None], argument: Any) -> BaseException | None:
    """Call, and return what the application raised in it."""
    try:
        call(argument)
    except (Stop, GatewayGone):
        raise
    except BaseException as err:
        return err
    return None
