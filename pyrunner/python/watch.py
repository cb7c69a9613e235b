"""--reload: tell the gateway which files the application has imported, so that it can watch them."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock

from . import frames
from .errors import RUNNER
from .files import FileWrapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator

    from .slot import Application

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (_LIBRARY + "site-packages" + os.sep, _LIBRARY + "dist-packages" + os.sep)  # lie within it
_OWN = os.path.dirname(RUNNER) + os.sep  # the archive
_whole = (list, tuple, str, bytes, FileWrapper)  # bodies whose blocks run no code of the application, and mistakes


class Reporter:
    """Sends the names of files that were imported, each once.

    Made in the working directory that relative names on sys.path mean: the
    application may leave it.
    """

    def __init__(self) -> None:
        self._here = os.getcwd()
        self._modules = 0  # how many there were at the last look
        self._told: set[str] = set()
        self._lock = allocate_lock()

    def report(self, channel: frames.Channel, request: int = 0, failure: BaseException | None = None) -> None:
        """Tell of what is new, and of the files that a failure is in."""
        if len(sys.modules) == self._modules and failure is None:
            return
        with self._lock:
            self._modules = len(sys.modules)
            found = [*_module_files(), *_failure_files(failure)]
            new = [path for path in map(self._absolute, dict.fromkeys(found)) if path]
        for frame in _frames(request, new):
            channel.send(frame)

    def _absolute(self, name: str) -> str:
        """Return the source file of that name, '' if it is told, or nobody's to edit."""
        if name in self._told:
            return ""
        self._told.add(name)
        path = os.path.normpath(os.path.join(self._here, _source(name)))
        if path.startswith(_OWN) or (path.startswith(_LIBRARY) and not path.startswith(_INSTALLED)):
            return ""
        return path if os.path.isfile(path) else ""


def _module_files() -> Iterator[str]:
    for module in list(sys.modules.values()):
        try:  # without waking a module that loads itself when it is touched
            name = object.__getattribute__(module, "__dict__").get("__file__")
        except AttributeError:
            continue
        if isinstance(name, str):
            yield name


def _failure_files(failure: BaseException | None) -> Iterator[str]:
    """The files of an exception's traceback, of its causes', and of syntax errors."""
    chain = [failure]
    seen = set()
    while chain:
        err = chain.pop()
        if err is None or id(err) in seen:
            continue
        seen.add(id(err))
        if isinstance(err, SyntaxError) and isinstance(err.filename, str):
            yield err.filename
        at = err.__traceback__
        while at is not None:
            yield at.tb_frame.f_code.co_filename
            at = at.tb_next
        chain += [err.__cause__, err.__context__]


def _source(name: str) -> str:
    """Return what was compiled to a file in __pycache__ (PEP 3147), else the file itself."""
    folder, file = os.path.split(name)
    if os.path.basename(folder) != "__pycache__":
        return name
    return os.path.join(os.path.dirname(folder), file.partition(".")[0] + ".py")


def _frames(request: int, paths: list[str]) -> Iterator[bytes]:
    """The frames that carry file names, each of them whole names."""
    held: list[bytes] = []
    size = 0
    for name in map(os.fsencode, paths):
        if held and size + len(name) > frames.MAX_TEXT:
            yield frames.frame(frames.IMPORTED, 0, request, b"\0".join(held))
            held, size = [], 0
        held.append(name)
        size += len(name) + 1
    if held:
        yield frames.frame(frames.IMPORTED, 0, request, b"\0".join(held))


class Watched:
    """Middleware that tells of the modules which a request has imported."""

    def __init__(self, app: Application, reporter: Reporter, channel: frames.Channel) -> None:
        self._app = app
        self._reporter = reporter
        self._channel = channel

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            result = self._app(environ, start_response)
        finally:
            self.report()
        if isinstance(result, _whole) or not hasattr(type(result), "__iter__"):
            return result
        return Body(result, self.report)

    def report(self) -> None:
        self._reporter.report(self._channel, self._channel.current)


class Body:
    """A body whose iteration may import more."""

    def __init__(self, result: Iterable[bytes], report: Callable[[], None]) -> None:
        self._result = result
        self._report = report

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def __len__(self) -> int:
        return len(self._result)  # type: ignore[arg-type]  # a TypeError tells that it has none

    def close(self) -> None:
        try:
            close = getattr(self._result, "close", None)
            if close is not None:
                close()
        finally:
            self._report()
