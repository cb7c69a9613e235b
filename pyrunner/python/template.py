"""The template of --preload: it has imported the application and forks workers.

PROTOCOL.md, "Template". It answers no request and has one thread: a fork copies only
the thread that calls it, and a lock that another one holds would stay locked.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from _socket import CMSG_SPACE
from struct import Struct
from time import sleep

from . import frames

try:
    import ctypes
except ImportError:  # the interpreter was built without libffi
    ctypes = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

COUNT = Struct("<I")
PID = Struct("<I")
PID_STATUS = Struct("<II")

MAX_RIGHTS = 253  # descriptors in one packet: SCM_MAX_FD of the kernel
MAX_COMMAND = 64  # bytes of a packet
MAX_NAMED = 8  # threads that a refusal names

_CLOSE_ON_EXEC = 0x40000000  # MSG_CMSG_CLOEXEC, which PyPy has no name for

# A thread that was joined may take a moment to leave the kernel's list.
THREAD_LOOKS, THREAD_PAUSE = 20, 0.005

_PR_SET_PDEATHSIG = 1  # of prctl(2), which the module os lacks


class Template:
    """Forks workers of this process as the gateway asks."""

    def __init__(self, channel: frames.Channel, commands: int, become: Callable[[int, list[int]], None]) -> None:
        self._channel = channel  # takes the answers
        self._commands = frames.socket_of(commands)
        self._become = become  # called in a worker with its descriptors: the dump, and those of the slots
        self._libc = ctypes and ctypes.CDLL(None)
        self._pid = os.getpid()
        self._workers: set[int] = set()  # forked and not reaped
        self._arrived: list[int] = []  # descriptors of the FORK that is on its way
        self._given: list[int] | None = None  # those of the worker that is being forked
        self._handlers: dict[int, object] = {}  # the application's
        self._collects = True
        # Before the application's hooks, so that those run in what is a worker already.
        os.register_at_fork(after_in_child=self._in_child)

    def prepare(self) -> None:
        """Make the process ready to be forked, once the application is imported."""
        for number in range(3):  # no descriptor that arrives must get the number of a stream
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        # SIGTERM is for workers: they would die with their template. A worker that has
        # ended keeps its number until the gateway knows of it: nothing else may reap it.
        for number, handler in ((signal.SIGTERM, signal.SIG_IGN), (signal.SIGCHLD, signal.SIG_DFL)):
            self._handlers[number] = signal.signal(number, handler)
        # No collection looks at what is frozen: it would write to all of it, so that nothing stayed shared.
        self._collects = gc.isenabled()
        gc.collect()
        gc.disable()
        if hasattr(gc, "freeze"):  # not in PyPy
            gc.freeze()

    def serve(self) -> bool:
        """Fork workers until the gateway wants no more. Returns True in each worker."""
        while self._obey():
            if os.getpid() != self._pid:
                return True
        return False

    def _obey(self) -> bool:
        """Take one command; False: there is none to come."""
        data, controls, _, _ = self._commands.recvmsg(MAX_COMMAND, CMSG_SPACE(4 * MAX_RIGHTS), _CLOSE_ON_EXEC)
        for _, _, rights in controls:
            self._arrived += memoryview(rights)[: len(rights) // 4 * 4].cast("i").tolist()
        if not data:
            return False
        kind, flags, _, request = frames.HEAD.unpack_from(data)
        (number,) = PID.unpack_from(data, frames.HEAD.size)
        if kind == frames.REAP:
            self._reap(number)
        elif kind == frames.FORK and not flags & frames.MORE:
            fds, self._arrived = self._arrived, []
            self._fork(request, number, fds)
        return True

    # Workers

    def _fork(self, request: int, count: int, fds: list[int]) -> None:
        flags, reason, pid = 0, "", 0
        try:
            if len(fds) != count:
                reason = "%d of %d descriptors arrived: too many open files" % (len(fds), count)
            else:
                reason = obstacle()
                flags = frames.REFUSED_ALWAYS if reason else 0
            if not reason:
                pid = self._fork_with(fds)
                if not pid:
                    return
        except OSError as err:
            reason = "the process cannot be copied: %s" % err.strerror
        for fd in fds:
            os.close(fd)
        if reason:
            answer = frames.text_frame(frames.REFUSED, flags, request, reason)
        else:
            self._workers.add(pid)
            answer = frames.frame(frames.FORKED, 0, request, PID.pack(pid))
        self._channel.send(answer)

    def _fork_with(self, fds: list[int]) -> int:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, ValueError, OSError):
                pass  # there is none, or the application closed it
        self._given = fds
        try:
            pid = os.fork()
        finally:
            self._given = None
        if pid:
            try:
                os.setpgid(pid, pid)  # the worker does it too: whoever comes first
            except OSError:
                pass
        return pid

    def _reap(self, pid: int) -> None:
        """Reap a worker that the gateway knows to have ended."""
        if pid in self._workers:
            self._workers.remove(pid)
            _, status = os.waitpid(pid, 0)
            self._channel.send(frames.frame(frames.REAPED, 0, 0, PID_STATUS.pack(pid, status)))

    # In the new process

    def _in_child(self) -> None:
        """Make a worker of a process that this one forked, or leave the application's own alone."""
        self._commands.close()
        fds, self._given = self._given, None
        if fds is None:
            return
        try:
            self._begin_worker(fds)
        except BaseException as err:  # which the interpreter would only print
            os.write(2, b"the worker cannot begin: %s\n" % frames.text_bytes(repr(err)))
            os._exit(1)

    def _begin_worker(self, fds: list[int]) -> None:
        if self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
            raise OSError("prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != self._pid:  # it ended before that
            os._exit(1)
        os.setpgid(0, 0)
        for number, fd in enumerate(fds[:2], 1):
            os.dup2(fd, number)
            os.close(fd)
        for signum, handler in self._handlers.items():
            if handler is not None:  # None: it was not set by Python
                signal.signal(signum, handler)  # type: ignore[arg-type]
        if self._collects:
            gc.enable()
        self._workers.clear()
        self._become(fds[2], fds[3:])


def obstacle() -> str:
    """Say why this process cannot be forked, now or later; '' if it can."""
    if ctypes is None:
        return "the interpreter has no ctypes, which a worker needs so that it ends with its template"
    threads = other_threads()
    return threads and "threads are running, which a fork would not copy: " + threads


def other_threads() -> str:
    """Name the threads of this process beside the main one, those of C code too; '' if there are none."""
    for _ in range(THREAD_LOOKS):
        me = os.readlink("/proc/self")
        others = [tid for tid in os.listdir("/proc/self/task") if tid != me]
        if not others:
            return ""
        sleep(THREAD_PAUSE)
    known = {}
    if "threading" in sys.modules:
        known = {str(thread.native_id): thread.name for thread in sys.modules["threading"].enumerate()}
    names = [_name_of(tid, known) for tid in others[:MAX_NAMED]]
    if len(others) > MAX_NAMED:
        names.append("%d more" % (len(others) - MAX_NAMED))
    return ", ".join(names)


def _name_of(tid: str, known: dict[str, str]) -> str:
    if tid in known:
        return known[tid]
    try:
        with open("/proc/self/task/%s/comm" % tid) as file:
            return "%s (not Python's)" % file.read().strip()
    except OSError:
        return "one that has just ended"
