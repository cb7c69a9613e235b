"""A worker's life: HELLO, load the application, READY, serve the slots, leave."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from marshal import loads

from . import errors, frames, loader, slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable

    from . import template, watch

# A signal that comes just before the main thread waits is seen when the wait is over. It may
# well come when the threads have just begun, so the first wait is short: in seconds.
SETTLE = 0.5

_NAMES = {"cpython": "CPython", "pypy": "PyPy"}


def main(argv: list[str]) -> int:
    """Run the worker; return the exit status."""
    channel = frames.Channel(int(argv[1]))
    try:
        channel.send(_hello())
        got = channel.receive()
    except frames.GatewayGone:
        return 1
    if got is None or got[0] != frames.INIT:
        return 1
    config: dict[str, Any] = loads(got[3])
    _import_for(config)
    _forget_archive(argv[0])
    worker = _Worker(channel, config)
    try:
        return worker.run()
    except frames.Stop:
        return 0
    finally:
        worker.close()


def _import_for(config: dict[str, Any]) -> None:
    """Import what this worker will need, while the archive is there, and sys.path, and descriptors."""
    if config["debug"]:
        from . import debug  # noqa: F401
    if not config["app"]:
        from . import demo  # noqa: F401
    if config["watch"]:
        from . import watch  # noqa: F401
    if config["raise_signal"]:
        from . import raising  # noqa: F401
    if config.get("template"):
        from . import template  # noqa: F401
    if _may_have_threads(config):
        import threading  # noqa: F401


def _may_have_threads(config: dict[str, Any]) -> bool:
    """Tell whether several slots are known, or not known yet: a template's workers have theirs later."""
    return len(config["slots"]) > 1 or bool(config.get("template"))


def _hello() -> bytes:
    version = getattr(sys, "pypy_version_info", sys.version_info)
    name = "%s %d.%d.%d" % ((_NAMES.get(sys.implementation.name, sys.implementation.name), *tuple(version[:3])))
    if version is not sys.version_info:
        name += " (Python %d.%d.%d)" % sys.version_info[:3]
    payload = frames.HELLO_HEAD.pack(frames.VERSION, os.getpid()) + name.encode()
    return frames.frame(frames.HELLO, 0, 0, payload)


def _failed(err: loader.LoadError) -> bytes:
    sentence = frames.text_bytes(" ".join(err.sentence.split()))[: frames.MAX_TEXT]
    trace = frames.text_bytes(err.trace)[-frames.MAX_TEXT :]  # the end of a traceback says most
    payload = (sentence + b"\n" + trace).decode("utf-8", "ignore").encode()
    return frames.frame(frames.FAILED, 0, 0, payload)


def _forget_archive(archive: str) -> None:
    """Take the runner's archive off the module path and close its descriptor.

    Its name /proc/self/fd/M would be another file's as soon as the application opens
    one. Nothing is read from it any more: all that this worker needs is imported.
    """
    sys.path[:] = [entry for entry in sys.path if entry != archive]
    sys.path_importer_cache.pop(archive, None)
    folder, _, number = archive.rpartition("/")
    if folder == "/proc/self/fd" and number.isdigit():
        _forget_loaders()
        os.close(int(number))


def _forget_loaders() -> None:
    """Keep tracebacks from looking for the runner's source lines in the archive.

    The module linecache would have them read from whatever has its descriptor by then.
    """
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "wsgigate_runner":
            module.__loader__ = None
            if module.__spec__ is not None:
                module.__spec__.loader = None


class _Worker:
    def __init__(self, channel: frames.Channel, config: dict[str, Any]) -> None:
        self._config = config
        self._channels = [channel]
        self._open_channels(config["slots"][1:])
        self._slots: list[slot.Slot] = []
        self._reporter: watch.Reporter | None = None
        self._dump_fd = -1  # once faulthandler has it
        self._template: template.Template | None = None

    def _open_channels(self, slots: list[int]) -> None:
        self._channels += [frames.Channel(fd) for fd in slots]
        for each, fd in zip(self._channels, self._config["requests"]):
            each.take_requests_from(fd)

    def run(self) -> int:
        self._prepare_process()
        try:
            app = self._load()
        except loader.LoadError as err:
            if self._reporter is not None:
                self._reporter.report(self._channels[0], failure=err)
            self._channels[0].send(_failed(err))
            return 1
        name = loader.describe_application(app)
        page = None
        if self._config["debug"]:
            from . import debug

            app, page = debug.validated(app), debug.error_page
        try:
            if self._template is not None:
                errors.prepare()
                self._template.prepare()
                self._say_ready(name)
                if not self._template.serve():
                    return 0
            self._slots = [slot.Slot(channel, self._watched(app, channel), page) for channel in self._channels]
            begin = self._start_threads()
            self._say_ready(name)
        except loader.LoadError as err:
            self._channels[0].send(_failed(err))
            return 1
        except frames.GatewayGone:
            return 1
        begin()
        return 0

    def _say_ready(self, name: str) -> None:
        if self._reporter is not None:
            self._reporter.report(self._channels[0])
        self._channels[0].send(frames.frame(frames.READY, 0, 0, frames.text_bytes(name)))

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _prepare_process(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which then stops its workers
        os.register_at_fork(after_in_child=self._after_fork_in_child)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # a log, so whole lines at once
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if sys.stderr is not None:
            faulthandler.enable()  # a crash's stack goes to the log
        self._prepare_dumps()
        if self._config["raise_signal"]:
            from . import raising

            raising.Raiser(self._config["raise_signal"], _may_have_threads(self._config))
        if self._config.get("template"):
            from . import template

            self._template = template.Template(self._channels[0], self._config["template"], self._become)

    def _become(self, dump_fd: int, slots: list[int]) -> None:
        """Go on as a worker of its own, in a process that the template has forked."""
        self._config.update(dump_fd=dump_fd, slots=slots[::2], requests=slots[1::2])
        self._channels = []
        self._open_channels(slots[::2])
        self._prepare_dumps()

    def _prepare_dumps(self) -> None:
        """Let faulthandler write stacks: it needs no GIL, so it works when Python is stuck."""
        fd, number = self._config["dump_fd"], self._config["dump_signal"]
        if fd >= 0 and number > 0 and hasattr(faulthandler, "register"):
            os.set_inheritable(fd, False)
            self._dump_fd = fd
            faulthandler.register(number, file=fd, all_threads=True, chain=False)

    def _load(self) -> Any:
        config = self._config
        form = config["app"]
        if config["chdir"]:
            try:
                os.chdir(config["chdir"])
            except OSError as err:
                raise loader.LoadError("--chdir %s: %s" % (config["chdir"], err.strerror)) from None
        if config["watch"]:
            from . import watch

            self._reporter = watch.Reporter()
            # A .pyc file tells its source's changes by whole seconds and its size: of two quick
            # saves the first would stay.
            sys.dont_write_bytecode = True
        sys.path[:0] = config["pythonpath"] + [loader.folder_of(form)]
        sys.argv[:] = [loader.script_of(form) or "wsgigate"]
        if form:
            return loader.load(form)
        from . import demo

        return demo.application

    def _watched(self, app: slot.Application, channel: frames.Channel) -> slot.Application:
        if self._reporter is None:
            return app
        from . import watch

        return watch.Watched(app, self._reporter, channel)

    def _start_threads(self) -> Callable[[], None]:
        """Return what serves: with several slots, threads that wait for it. Raises LoadError if they cannot be had.

        None takes a request before that: it would run beside an import of the runner's. One
        slot can make that import when the first client has its answer.
        """
        count = len(self._slots)
        if count == 1:
            return lambda: self._slots[0].run(errors.prepare)
        from threading import Event, Thread

        begun = Event()

        def wait_and_run(each: slot.Slot) -> None:
            begun.wait()
            each.run()

        threads: list[Thread] = []
        for number, each in enumerate(self._slots):
            thread = Thread(target=wait_and_run, args=(each,), name="slot-%d" % number, daemon=True)
            try:
                thread.start()
            except RuntimeError as err:
                raise loader.LoadError(
                    "thread %d of %d cannot be started (%s): use fewer --threads, or raise what limits the user's or "
                    "the service's processes (ulimit -u, TasksMax) or the worker's memory (--limit-memory)"
                    % (number + 1, count, err)
                ) from None
            threads.append(thread)

        def begin() -> None:
            errors.prepare()
            begun.set()
            threads[0].join(SETTLE)
            for thread in threads:
                thread.join()

        return begin

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: leave at once, by way of finally clauses and atexit functions."""
        for each in self._slots:
            each.stopping = True  # should the application swallow the exception
        raise frames.Stop

    def _after_fork_in_child(self) -> None:
        for channel in self._channels:
            channel.after_fork_in_child()
        if self._dump_fd >= 0:
            faulthandler.unregister(self._config["dump_signal"])
            os.close(self._dump_fd)
            self._dump_fd = -1
        if signal.getsignal(signal.SIGTERM) == self._stop:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            except ValueError:
                pass  # not the main thread, says an interpreter that forgets which one is
