"""The template of --preload, and the workers that it forks."""

import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import textwrap
import threading
import time
import unittest

from wsgigate_runner import frames, template

from .gateway import DEADLINE, NAMES, Peer, Process

NAMES.update({getattr(frames, name): name for name in ("FORKED", "REFUSED", "REAPED")})

APP = """
import gc, os, random, signal, sys, threading, time

imported_in = os.getpid()
order = []
os.register_at_fork(
    before=lambda: order.append("before"),
    after_in_parent=lambda: order.append("parent"),
    after_in_child=lambda: order.append("child"),
)

def application(environ, start_response):
    result = globals()[environ["PATH_INFO"][1:]](environ)
    start_response("200 OK", [])
    return [result if isinstance(result, bytes) else repr(result).encode()]

def process(environ):
    return os.getpid(), os.getppid(), os.getpgid(0), imported_in

def hooks(environ):
    return order

def chance(environ):
    return random.random()

def fds(environ):
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[int(number)] = os.readlink("/proc/self/fd/" + number)
        except OSError:
            pass  # it was listdir's own
    return sorted(found.items())

def prints(environ):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return b"printed"

def state(environ):
    handlers = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)]
    return gc.isenabled(), handlers[0] is signal.SIG_DFL, handlers[1] is signal.SIG_IGN

def thread(environ):
    return threading.current_thread().name

def forks(environ):
    pid = os.fork()
    if not pid:
        return b"from the child"
    return os.waitpid(pid, 0)[1]

def sleeps(environ):
    try:
        environ["wsgi.errors"].write("begun\\n")
        time.sleep(600)
    finally:
        print("finally ran")

def exits(environ):
    os._exit(7)
"""

THREAD = "threading.Thread(target=time.sleep, args=(600,), name=%r, daemon=True).start()\n"
OWN = 3 + 2  # descriptors of a worker with one slot that FORK carries


class Worker:
    """A worker that the template forked, and the gateway's ends of what it has."""

    def __init__(self, gateway, slots=1):
        self.gateway = gateway
        self.log = tempfile.TemporaryFile()
        self.dump, dump = os.pipe()
        pairs = [(socket.socketpair(), socket.socketpair(type=socket.SOCK_SEQPACKET)) for _ in range(slots)]
        self.peers = [Peer(stream[0]) for stream, _ in pairs]
        self.requests = [requests[0] for _, requests in pairs]
        theirs = [end.fileno() for pair in pairs for _, end in pair]
        self.answer = gateway.fork([self.log.fileno(), self.log.fileno(), dump] + theirs)
        os.close(dump)
        for pair in pairs:
            for _, end in pair:
                end.close()
        self.pid = struct.unpack("<I", self.answer.payload)[0] if self.answer.kind == "FORKED" else 0

    def ready(self):
        first = self.peers[0].receive()
        assert first.kind == "READY", first
        return self

    def ask(self, path, slot=0):
        self.peers[slot].start(PATH_INFO=path, deliver=self.requests[slot].send)
        answer = self.peers[slot].finish()
        assert answer.end.flags == 0, answer.end
        return answer.body.decode()

    def value(self, path, slot=0):
        return eval(self.ask(path, slot))

    def logged(self):
        self.log.seek(0)
        return self.log.read().decode()

    def leave(self):
        for each in self.peers + self.requests:
            each.close()
        os.close(self.dump)
        self.log.close()

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)


class Gateway:
    """Runs a template."""

    def __init__(self, app=APP, **more):
        self.folder = tempfile.TemporaryDirectory()
        with open(os.path.join(self.folder.name, "app.py"), "w") as file:
            file.write(textwrap.dedent(app))
        self._commands, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.process = Process(
            "app", chdir=self.folder.name, passed=[theirs.fileno()], template=theirs.fileno(), **more
        )
        theirs.close()
        self.workers = []
        self.early = []  # what came while something else was awaited
        self.first = self.process.begin()
        self.serial = 0

    @property
    def pid(self):
        return self.process.process.pid

    def command(self, kind, number, flags=0, fds=()):
        payload = struct.pack("<I", number)
        head = struct.pack("<BBHII", kind, flags, 0, 4 + len(payload), self.serial)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=%di" % len(fds), *fds))] if fds else []
        self._commands.sendmsg([head + payload], rights)

    def await_answer(self, *kinds):
        for each in self.early:
            if each.kind in kinds:
                self.early.remove(each)
                return each
        while True:
            got = self.process.peer.receive()
            if got.kind in kinds:
                return got
            self.early.append(got)

    def fork(self, fds, count=None, at_once=template.MAX_RIGHTS):
        self.serial += 1
        count = len(fds) if count is None else count
        while len(fds) > at_once:
            self.command(frames.FORK, count, frames.MORE, fds[:at_once])
            fds = fds[at_once:]
        self.command(frames.FORK, count, 0, fds)
        answer = self.await_answer("FORKED", "REFUSED")
        assert answer.request == self.serial
        return answer

    def worker(self, slots=1):
        worker = Worker(self, slots)
        self.workers.append(worker)
        assert worker.answer.kind == "FORKED", worker.answer
        return worker.ready()

    def await_end(self, worker):
        """The wait status of a worker, which is reaped then."""
        _await(lambda: _state(worker.pid) in ("Z", ""))
        assert _state(worker.pid) == "Z", "reaped before REAP"
        self.command(frames.REAP, worker.pid)
        reaped = self.await_answer("REAPED")
        pid, status = struct.unpack("<II", reaped.payload)
        assert pid == worker.pid
        assert _state(worker.pid) == "", "not reaped"
        return status

    def close(self):
        self._commands.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
        for worker in self.workers:
            worker.leave()
        self.process.__exit__(*exc)
        self.folder.cleanup()


def _state(pid):
    """The letter of /proc/PID/stat; '' of a process that is gone."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _await(what):
    end = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


class Forks(unittest.TestCase):
    def test_a_worker(self):
        with Gateway() as gateway:
            self.assertEqual(gateway.first.kind, "READY")
            self.assertEqual(gateway.first.text, "app.application")
            first, second = gateway.worker(), gateway.worker()
            for worker in (first, second):
                self.assertEqual(worker.value("/process"), (worker.pid, gateway.pid, worker.pid, gateway.pid))
                self.assertEqual(worker.value("/state"), (True, True, True))
            self.assertNotEqual(first.value("/chance"), second.value("/chance"))
            first.ask("/prints")
            self.assertEqual(first.logged(), "to stdout\nto stderr\n")
            self.assertEqual(second.logged(), "")

    def test_hooks_run_in_order(self):
        with Gateway() as gateway:
            self.assertEqual(gateway.worker().value("/hooks"), ["before", "child"])
            self.assertEqual(gateway.worker().value("/hooks"), ["before", "parent", "before", "child"])

    def test_descriptors(self):
        with Gateway() as gateway:
            gateway.worker()
            found = gateway.worker().value("/fds")
            self.assertEqual([number for number, _ in found[:3]], [0, 1, 2], found)
            self.assertEqual(found[0][1], "/dev/null")
            self.assertEqual(len(found), OWN + 1, found)  # stdin beside them
            self.assertEqual(sum(name.startswith("socket:") for _, name in found), 2, found)
            _await(lambda: len(os.listdir("/proc/%d/fd" % gateway.pid)) == 3 + 2)  # its sockets

    def test_a_thread_for_each_slot(self):
        with Gateway() as gateway:
            worker = gateway.worker(slots=4)
            self.assertEqual([worker.value("/thread", n) for n in range(4)], ["slot-%d" % n for n in range(4)])

    def test_more_descriptors_than_a_packet_takes(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 2000:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(2000, hard), hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with Gateway() as gateway:
            worker = gateway.worker(slots=200)
            self.assertEqual(worker.value("/thread", 199), "slot-199")

    def test_a_worker_ends(self):
        with Gateway() as gateway:
            worker = gateway.worker()
            worker.kill(signal.SIGSEGV)
            status = gateway.await_end(worker)
            self.assertEqual(os.WTERMSIG(status), signal.SIGSEGV)
            other = gateway.worker()
            other.requests[0].shutdown(socket.SHUT_WR)
            self.assertEqual(gateway.await_end(other), 0)
            gateway.command(frames.REAP, other.pid)  # once more: nothing happens
            last = gateway.worker()
            last.peers[0].start(PATH_INFO="/exits", deliver=last.requests[0].send)
            self.assertEqual(os.WEXITSTATUS(gateway.await_end(last)), 7)

    def test_sigterm(self):
        with Gateway() as gateway:
            worker = gateway.worker()
            os.kill(gateway.pid, signal.SIGTERM)  # ignored
            peer = worker.peers[0]
            peer.start(PATH_INFO="/sleeps", deliver=worker.requests[0].send)
            self.assertEqual(peer.receive().kind, "ERRORS")
            worker.kill(signal.SIGTERM)
            self.assertEqual(gateway.await_end(worker), 0)
            self.assertIn("finally ran", worker.logged())
            self.assertEqual(gateway.worker().value("/process")[1], gateway.pid)

    def test_stacks(self):
        with tempfile.TemporaryFile() as dump, Gateway(dump=dump) as gateway:
            worker = gateway.worker()
            worker.peers[0].start(PATH_INFO="/sleeps", deliver=worker.requests[0].send)
            self.assertEqual(worker.peers[0].receive().kind, "ERRORS")
            worker.kill(signal.SIGUSR1)
            stacks = b""
            while b"in sleeps" not in stacks:
                stacks += os.read(worker.dump, 1 << 16)
            self.assertEqual(os.fstat(dump.fileno()).st_size, 0)

    def test_the_application_forks(self):
        with Gateway() as gateway:
            worker = gateway.worker()
            self.assertEqual(worker.value("/forks"), 0)
            self.assertEqual(worker.value("/process")[0], worker.pid)

    def test_no_more_forks(self):
        with Gateway() as gateway:
            worker = gateway.worker()
            worker.requests[0].shutdown(socket.SHUT_WR)
            self.assertEqual(gateway.await_end(worker), 0)
            gateway.close()
            self.assertEqual(gateway.process.wait(), 0)

    def test_the_template_is_killed(self):
        with Gateway() as gateway:
            workers = [gateway.worker() for _ in range(3)]
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.process.wait()
            for worker in workers:
                _await(lambda pid=worker.pid: _state(pid) in ("", "Z"))

    def test_sigchld_is_ignored_by_the_application(self):
        with Gateway(APP + "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n") as gateway:
            worker = gateway.worker()
            self.assertEqual(worker.value("/state")[1], False)
            worker.kill()
            self.assertEqual(os.WTERMSIG(gateway.await_end(worker)), signal.SIGKILL)

    def test_the_application_closed_its_streams(self):
        with Gateway(APP + "os.closerange(0, 3)\n") as gateway:
            worker = gateway.worker()
            self.assertEqual([number for number, _ in worker.value("/fds")[:3]], [0, 1, 2])
            worker.ask("/prints")
            self.assertEqual(worker.logged(), "to stdout\nto stderr\n")

    def test_collection_is_off_if_the_application_says_so(self):
        with Gateway(APP + "gc.disable()\n") as gateway:
            self.assertEqual(gateway.worker().value("/state")[0], False)


class Refuses(unittest.TestCase):
    def refused(self, gateway, *parts):
        answer = Worker(gateway)
        answer.leave()
        self.assertEqual((answer.answer.kind, answer.answer.flags), ("REFUSED", frames.REFUSED_ALWAYS))
        for part in parts:
            self.assertIn(part, answer.answer.text)

    def test_a_thread_of_python(self):
        with Gateway(APP + THREAD % "waits") as gateway:
            self.assertEqual(gateway.first.kind, "READY")
            self.refused(gateway, "waits")

    def test_a_thread_of_the_low_module(self):
        with Gateway(APP + "import _thread\n_thread.start_new_thread(time.sleep, (600,))\n") as gateway:
            self.refused(gateway, "not Python's")

    def test_a_thread_that_was_joined(self):
        with Gateway(
            APP + "for n in range(50):\n t = threading.Thread(target=int)\n t.start()\n t.join()\n"
        ) as gateway:
            gateway.worker()

    def test_a_thread_started_between_forks(self):
        more = (
            """
def later():
    """
            + THREAD % "late"
            + """
os.register_at_fork(after_in_parent=later)
"""
        )
        with Gateway(APP + more) as gateway:
            worker = gateway.worker()
            self.refused(gateway, "late")
            self.assertEqual(worker.value("/process")[0], worker.pid)

    def test_names_some_of_many(self):
        start = "for n in range(20):\n threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        with Gateway(APP + start) as gateway:
            self.refused(gateway, "12 more")

    def test_descriptors_that_did_not_arrive(self):
        with Gateway() as gateway:
            answer = gateway.fork([gateway.process.log.fileno()] * 3, count=5)
            self.assertEqual((answer.kind, answer.flags), ("REFUSED", 0))
            self.assertIn("3 of 5", answer.text)
        limit = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n"
        with Gateway(APP + limit) as gateway:
            answer = gateway.fork([gateway.process.log.fileno()] * 60)
            self.assertEqual((answer.kind, answer.flags), ("REFUSED", 0))
            self.assertIn("of 60 descriptors", answer.text)
            gateway.worker()

    def test_fork_fails(self):
        fails = """
real = os.fork
def fork():
    if os.getpid() == imported_in and not order:
        order.append("failed")
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real()
os.fork = fork
"""
        with Gateway(APP + fails) as gateway:
            answer = gateway.fork([gateway.process.log.fileno()] * OWN)
            self.assertEqual((answer.kind, answer.flags), ("REFUSED", 0))
            self.assertIn("Resource temporarily unavailable", answer.text)
            gateway.worker()

    def test_import_fails(self):
        with Gateway("import nowhere_to_be_found\n") as gateway:
            self.assertEqual(gateway.first.kind, "FAILED")
            self.assertIn("nowhere_to_be_found", gateway.first.text)
            self.assertEqual(gateway.process.wait(), 1)


class Threads(unittest.TestCase):
    def test_this_process(self):
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="mine", daemon=True)
        thread.start()
        try:
            self.assertIn("mine", template.other_threads())
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    sys.exit(unittest.main())
