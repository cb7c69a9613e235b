"""A fake gateway: the other end of a slot's socket, for tests."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile

from wsgigate_runner import frames
from wsgigate_runner.slot import Slot

from . import SOURCES
from .golden import marshal_environ, marshal_init

DEADLINE = 30  # seconds; nothing here takes more than one

NAMES = {
    number: name
    for name, number in vars(frames).items()
    if name in "INIT REQUEST BODY CANCEL HELLO READY FAILED HEADERS DATA FILE ERRORS READ END WARN IMPORTED".split()
}


def environ(**more):
    base = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    base.update(more)
    return base


class Frame:
    """One frame of a worker."""

    def __init__(self, kind, flags, request, payload, fds):
        self.kind, self.flags, self.request, self.payload, self.fds = NAMES[kind], flags, request, payload, fds

    @property
    def text(self):
        return self.payload.decode("utf-8")

    def __repr__(self):
        return "%s(%d, %r)" % (self.kind, self.flags, self.payload[:200])


class Answer:
    """All frames of one response, put together."""

    def __init__(self, frames_of_it):
        self.frames = frames_of_it
        self.kinds = [each.kind for each in frames_of_it]
        self.end = frames_of_it[-1]
        head = [each for each in frames_of_it if each.kind == "HEADERS"]
        assert len(head) <= 1, "HEADERS twice"
        self.status, self.headers = None, []
        if head:
            lines = head[0].payload.decode("latin-1").split("\n")
            assert lines.pop() == ""
            self.status = lines[0]
            self.headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
        self.body = b""
        for each in frames_of_it:
            if each.kind == "DATA":
                self.body += each.payload
            elif each.kind == "FILE":
                offset, count = struct.unpack("<QQ", each.payload)
                (fd,) = each.fds
                self.body += os.pread(fd, count, offset)
                os.close(fd)
        self.last = any(each.flags & 1 for each in frames_of_it if each.kind in ("HEADERS", "DATA", "FILE"))
        self.errors = "".join(each.text for each in frames_of_it if each.kind == "ERRORS")
        self.warnings = [each.text for each in frames_of_it if each.kind == "WARN"]

    def header(self, name):
        values = [value for got, value in self.headers if got.lower() == name.lower()]
        return values[0] if values else None


class Peer:
    """The gateway's end of a slot."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(DEADLINE)
        self._held = b""
        self._fds = []
        self.request = 0

    def send(self, kind, flags=0, payload=b"", request=None):
        request = self.request if request is None else request
        self.sock.sendall(struct.pack("<BBHII", kind, flags, 0, 4 + len(payload), request) + payload)

    def _read(self, size):
        while len(self._held) < size:
            data, controls, _, _ = self.sock.recvmsg(1 << 20, 4096)
            if not data:
                raise EOFError("the worker closed its slot")
            for level, kind, rights in controls:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                self._fds += struct.unpack("=%di" % (len(rights) // 4), rights)
            self._held += data
        data, self._held = self._held[:size], self._held[size:]
        return data

    def receive(self):
        kind, flags, reserved, length, request = struct.unpack("<BBHII", self._read(12))
        assert reserved == 0 and 4 <= length <= (1 << 20) + 64, (kind, flags, reserved, length)
        payload = self._read(length - 4)
        fds = []
        if kind == frames.FILE:
            fds, self._fds = self._fds, []
        return Frame(kind, flags, request, payload, fds)

    def start(self, env=None, body=b"", flags=0, deliver=None, **more):
        """Send a REQUEST, on the stream or as a packet."""
        self.request += 1
        data = marshal_environ((environ(**more) if env is None else env).items())
        payload = struct.pack("<I", len(data)) + data + body
        head = struct.pack("<BBHII", frames.REQUEST, flags, 0, 4 + len(payload), self.request)
        (deliver or self.sock.sendall)(head + payload)

    def finish(self, feed=()):
        """Receive an answer; READs are answered from feed, a list of (flags, bytes)."""
        feed = list(feed)
        got = []
        while True:
            each = self.receive()
            assert each.request == self.request, each
            got.append(each)
            if each.kind == "READ":
                flags, data = feed.pop(0)
                self.send(frames.BODY, flags | each.flags, data)
            if each.kind == "END":
                self.check_order(got)
                return Answer(got)

    @staticmethod
    def check_order(got):
        """Hold PROTOCOL.md's order of frames."""
        head = last = False
        for each in got[:-1]:
            assert not (last and each.kind in ("DATA", "FILE", "READ", "HEADERS")), got
            if each.kind in ("DATA", "FILE"):
                assert head, got
                assert each.payload or each.flags & 1, got
            if each.kind == "READ":
                assert 1 <= struct.unpack("<I", each.payload)[0] <= 256 << 10
            if each.kind == "HEADERS":
                assert not head, got
                head = True
            if each.kind in ("HEADERS", "DATA", "FILE"):
                last = bool(each.flags & 1)

    def ask(self, env=None, body=b"", flags=0, feed=(), **more):
        self.start(env, body, flags, **more)
        return self.finish(feed)

    def close(self):
        self.sock.close()


class InProcess:
    """A slot that runs in a thread of the test."""

    def __init__(self, app, page=None):
        ours, theirs = socket.socketpair()
        self.peer = Peer(ours)
        self._channel = frames.Channel(theirs.detach())
        self.slot = Slot(self._channel, app, page)
        self._thread = threading.Thread(target=self.slot.run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self.peer

    def __exit__(self, *exc):
        self.peer.close()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the slot does not end"
        self._channel.close()


def answer(app, **request):
    """The answer of an application to one request."""
    with InProcess(app) as peer:
        return peer.ask(**request)


def archive():
    """An open temporary file with the runner's zip archive, as the gateway makes it."""
    file = tempfile.TemporaryFile()
    with zipfile.ZipFile(file, "w") as out:
        for name in sorted(os.listdir(SOURCES)):
            if name.endswith(".py"):
                folder = "" if name == "__main__.py" else "wsgigate_runner/"
                out.write(os.path.join(SOURCES, name), folder + name)
    file.flush()
    return file


class Process:
    """A worker process as the gateway starts it."""

    def __init__(self, app, slots=1, python=sys.executable, dump=None, passed=(), **init):
        pairs = [socket.socketpair() for _ in range(slots)]
        self.peers = [Peer(ours) for ours, _ in pairs]
        self.peer = self.peers[0]
        self.log = tempfile.TemporaryFile()
        fds = [theirs.fileno() for _, theirs in pairs]
        with archive() as file:
            passed = [*passed, *fds, file.fileno()] + ([dump.fileno()] if dump else [])
            self.process = subprocess.Popen(
                [python, "/proc/self/fd/%d" % file.fileno(), str(fds[0])],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )
        for _, theirs in pairs:
            theirs.close()
        self._init = {
            "app": app,
            "slots": fds,
            "requests": [],
            "chdir": "",
            "pythonpath": [],
            "debug": False,
            "dump_fd": dump.fileno() if dump else -1,
            "dump_signal": signal.SIGUSR1 if dump else 0,
            "raise_signal": 0,
            "watch": False,
        }
        self._init.update(init)

    def begin(self):
        """Say INIT; return HELLO and what comes then (READY or FAILED)."""
        self.hello = self.peer.receive()
        if self.hello.kind == "HELLO":
            self.send_init()
            return self.peer.receive()
        return self.hello

    def send_init(self):
        self.peer.send(frames.INIT, 0, marshal_init(self._init.items()))

    def logged(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def wait(self):
        return self.process.wait(DEADLINE)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for peer in self.peers:
            peer.close()
        try:
            self.wait()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.log.close()
