"""A worker process, started from the archive as the gateway does it."""

import ast
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

from wsgigate_runner import frames

from . import SOURCES
from .gateway import DEADLINE, Peer, Process

APP = """
import atexit, os, socket, subprocess, sys, threading, time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/streams":
        start_response("200 OK", [])
        return Streams()
    result = globals()[environ["PATH_INFO"][1:]](environ)
    start_response("200 OK", [])
    return [result if isinstance(result, bytes) else repr(result).encode()]

def hello(environ):
    return b"hello"

def about(environ):
    names = [name for name in sys.path if "/proc/" in name or name.endswith(".zip") and os.path.isfile(name)]
    return [sys.argv, names, os.getcwd(), sys.path[:3]]

def fds(environ):
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + number))
        except OSError:
            pass  # it was listdir's own
    return found

def inherited(environ):
    code = "import os; print(len([n for n in os.listdir('/proc/self/fd') if int(n) > 2]) - 1)"
    return int(subprocess.run([sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE).stdout)

def prints(environ):
    print("to stdout")
    os.write(1, b"to descriptor 1\\n")
    print("to stderr", file=sys.stderr)
    return sys.stdin.read()

def pid(environ):
    return os.getpid()

def thread(environ):
    return threading.current_thread().name

def sleeps(environ):
    try:
        environ["wsgi.errors"].write("begun\\n")
        time.sleep(600)
    finally:
        print("finally ran")

def swallows(environ):
    try:
        environ["wsgi.errors"].write("begun\\n")
        time.sleep(600)
    except BaseException as err:
        print("swallowed", type(err).__name__)
    return b"swallowed"

def exits(environ):
    sys.exit(3)

def dies(environ):
    os._exit(7)

def forks(environ):
    if os.fork() == 0:
        return b"from the child"
    os.wait()
    return b"from the parent"

def fork_exits(environ):
    child = os.fork()
    if child == 0:
        sys.exit(9)
    return os.waitpid(child, 0)[1] >> 8

def fork_fds(environ):
    before = len(fds(environ))
    child = os.fork()
    if child == 0:
        os._exit(before - len(fds(environ)))
    return os.waitpid(child, 0)[1] >> 8

class Streams:
    def __iter__(self):
        yield b"begun"
        time.sleep(600)

    def close(self):
        print("close ran")

def fork_writes(environ):
    child = os.fork()
    if child == 0:
        environ["wsgi.errors"].write("from the child\\n")
        os._exit(5)
    return os.waitpid(child, 0)[1] >> 8

def fork_terminated(environ):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"x")
        time.sleep(600)
        os._exit(0)
    os.read(read, 1)
    os.kill(child, 15)
    return os.waitpid(child, 0)[1]

def uses_up_descriptors(environ):
    while True:
        held.append(open("/dev/null"))

def clears_path(environ):
    sys.path.clear()
    "h\xe9" + str(1 / 0)

def hides_traceback(environ):
    sys.modules["traceback"] = None
    1 / 0

class Unprintable(Exception):
    def __str__(self):
        sys.exit(5)

def raises_unprintable(environ):
    sys.modules["traceback"] = None
    raise Unprintable

held = []

def closes_standard(environ):
    for fd in (0, 1, 2):
        os.close(fd)
    return b"closed"

def closes_all(environ):
    os.closerange(0, 256)
    return b"closed"

def segfault(environ):
    os.kill(os.getpid(), 11)

waiting = threading.Barrier(2)

def meet(environ):
    waiting.wait(30)
    return b"met"

atexit.register(lambda: print("atexit ran"))
"""


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = os.path.realpath(folder.name)
        self.file("site_app.py", APP)

    def file(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as out:
            out.write(textwrap.dedent(text))

    def worker(self, app="site_app", ready=True, **init):
        init.setdefault("chdir", self.folder)
        worker = Process(app, **init)
        self.addCleanup(worker.__exit__)
        self.first = worker.begin()
        if ready:
            self.assertEqual(self.first.kind, "READY", (self.first, worker.logged()))
        return worker

    def ask(self, worker, what, slot=0):
        got = worker.peers[slot].ask(PATH_INFO="/" + what)
        self.assertEqual((got.status, got.end.flags), ("200 OK", 0), (got.frames, worker.logged()))
        return got.body.decode()

    def end(self, worker):
        for peer in worker.peers:
            peer.close()
        return worker.wait()

    def await_log(self, worker, text):
        deadline = time.monotonic() + DEADLINE
        while text not in worker.logged():
            self.assertLess(time.monotonic(), deadline, worker.logged())
            time.sleep(0.01)


class Life(Case):
    def test_start_serve_leave(self):
        worker = self.worker()
        version, pid = frames.HELLO_HEAD.unpack_from(worker.hello.payload)
        self.assertEqual((version, pid), (frames.VERSION, worker.process.pid))
        self.assertRegex(worker.hello.payload[6:].decode(), r"^(CPython|PyPy) \d+\.\d+\.\d+")
        self.assertEqual(self.first.text, "site_app.application")
        self.assertEqual(self.ask(worker, "hello"), "hello")
        self.assertEqual(self.end(worker), 0)
        self.assertEqual(worker.logged(), "atexit ran\n")

    def test_demo(self):
        worker = self.worker("")
        self.assertIn(b"wsgigate works", worker.peer.ask().body)
        self.assertEqual(self.end(worker), 0)
        self.assertEqual(worker.logged(), "")

    def test_what_the_application_finds(self):
        os.mkdir(os.path.join(self.folder, "lib"))
        worker = self.worker(pythonpath=["/one", self.folder + "/lib"])
        argv, archives, cwd, path = eval(self.ask(worker, "about"))
        self.assertEqual((argv, archives, cwd), (["site_app"], [], self.folder))
        self.assertEqual(path, ["/one", self.folder + "/lib", self.folder])

    def test_file_form(self):
        worker = self.worker(self.folder + "/site_app.py", chdir="/")
        argv, _, cwd, path = eval(self.ask(worker, "about"))
        self.assertEqual((argv, cwd, path[0]), ([self.folder + "/site_app.py"], "/", self.folder))

    def test_descriptors(self):
        with tempfile.TemporaryFile() as dump:
            worker = self.worker(slots=2, dump=dump)
            found = [name for name in eval(self.ask(worker, "fds")) if "urandom" not in name]  # PyPy's
            self.assertEqual(len([name for name in found if name.startswith("socket:")]), 2, found)
            # stdin, stdout, stderr, the dump, and no archive
            self.assertEqual(len(found), 6, found)
            self.assertEqual(self.ask(worker, "inherited"), "0")

    def test_printing_is_harmless(self):
        worker = self.worker()
        self.assertEqual(self.ask(worker, "prints"), "''")
        self.assertEqual(self.ask(worker, "hello"), "hello")
        self.assertEqual(worker.logged(), "to stdout\nto descriptor 1\nto stderr\n")

    def test_closing_the_standard_descriptors_is_harmless(self):
        worker = self.worker()
        self.assertEqual(self.ask(worker, "closes_standard"), "closed")
        self.assertEqual(self.ask(worker, "hello"), "hello")

    def test_closing_everything_ends_the_worker(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/closes_all")
        with self.assertRaises((EOFError, ConnectionResetError)):
            worker.peer.finish()
        worker.wait()

    def test_debug(self):
        self.file("bare.py", "def app(e, s):\n    s('200 OK', [])\n    return [b'x']\n")
        worker = self.worker("bare", debug=True)
        got = worker.peer.ask()
        self.assertEqual((got.status, got.end.flags), ("500 Internal Server Error", frames.END_FAILED))
        self.assertIn(b"No Content-Type header", got.body)

    def test_sys_exit_keeps_the_worker(self):
        worker = self.worker()
        self.assertIn("SystemExit: 3", worker.peer.ask(PATH_INFO="/exits").end.text)
        self.assertEqual(self.ask(worker, "hello"), "hello")

    def test_gateway_gone_while_busy(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/hello")
        worker.peer.close()
        self.assertEqual(worker.wait(), 0)

    def test_death(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/dies")
        with self.assertRaises((EOFError, ConnectionResetError)):
            worker.peer.finish()
        self.assertEqual(worker.wait(), 7)


class Starved(Case):
    """What the application does to the process must not keep the runner from answering for it."""

    def check(self, path, message, first=False, **init):
        worker = self.worker(**init)
        if not first:
            worker.peer.ask(PATH_INFO="/hello")  # which --debug finds fault with
        for _ in range(2):
            got = worker.peer.ask(PATH_INFO=path)
            self.assertEqual(got.end.flags, frames.END_FAILED)
            self.assertRegex(got.end.text, "^" + message + r" at site_app\.py:\d+$")
            self.assertRegex(got.errors, r"(?s)^Traceback \(most recent.*, in %s\n.*%s" % (path[1:], message))
            self.assertNotIn("slot.py", got.errors)
        if not init:
            self.assertEqual(self.ask(worker, "hello"), "hello")
        return got

    def test_of_descriptors(self):
        few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        self.file("site_app.py", few + textwrap.dedent(APP))
        for init in ({}, {"slots": 2}, {"debug": True}):
            got = self.check("/uses_up_descriptors", r"OSError: \[Errno 24\] .*", **init)
            self.assertNotIn("no more can be said", got.errors)

    def test_of_the_module_path(self):
        for init in ({}, {"slots": 2}, {"debug": True}):
            got = self.check("/clears_path", "ZeroDivisionError: division by zero", **init)
            self.assertIn("str(1 / 0)", got.errors)

    def test_in_the_first_request(self):
        self.check("/clears_path", "ZeroDivisionError: division by zero", first=True)

    def test_of_the_module_path_from_the_start(self):
        self.file("site_app.py", textwrap.dedent(APP) + "sys.path.clear()\n")
        for init in ({}, {"slots": 2}, {"debug": True}, {"raise_signal": signal.SIGRTMIN, "slots": 2}):
            self.check("/clears_path", "ZeroDivisionError: division by zero", **init)

    def test_of_words(self):
        zero = "ZeroDivisionError: division by zero"
        self.assertIn("(no more can be said of it: ", self.check("/hides_traceback", zero).errors)
        self.assertIn(zero.encode(), self.check("/hides_traceback", zero, debug=True).body)
        self.check("/raises_unprintable", "Unprintable: <unprintable>")


class Threads(Case):
    def test_slots_work_at_the_same_time(self):
        worker = self.worker(slots=2)
        for peer in worker.peers:
            peer.start(PATH_INFO="/meet")
        for peer in worker.peers:
            self.assertEqual(peer.finish().body, b"met")
        self.assertEqual(self.ask(worker, "thread", 1), "'slot-1'")
        self.assertEqual(self.end(worker), 0)
        self.assertEqual(worker.logged(), "atexit ran\n")

    def test_a_closed_slot_leaves_the_others(self):
        worker = self.worker(slots=2)
        worker.peers[0].close()
        self.assertEqual(self.ask(worker, "hello", 1), "hello")
        self.assertEqual(self.end(worker), 0)

    def test_one_slot_is_the_main_thread(self):
        self.assertEqual(self.ask(self.worker(), "thread"), "'MainThread'")


class Signals(Case):
    def test_term_while_idle(self):
        for slots in (1, 2):
            worker = self.worker(slots=slots)
            self.ask(worker, "hello")
            worker.process.send_signal(signal.SIGTERM)
            self.assertEqual(worker.wait(), 0)
            self.assertEqual(worker.logged(), "atexit ran\n")

    def test_term_while_busy(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/sleeps")
        self.assertEqual(worker.peer.receive().text, "begun\n")
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(), 0)
        self.assertEqual(worker.logged(), "finally ran\natexit ran\n")

    def test_term_in_mid_body_closes_it(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/streams")
        self.assertEqual([worker.peer.receive().kind for _ in range(2)], ["HEADERS", "DATA"])
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(), 0)
        self.assertEqual(worker.logged(), "close ran\natexit ran\n")

    def test_term_while_busy_in_a_thread(self):
        worker = self.worker(slots=2)
        worker.peers[1].start(PATH_INFO="/sleeps")
        self.assertEqual(worker.peers[1].receive().text, "begun\n")
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(), 0)
        self.assertIn("atexit ran\n", worker.logged())

    def test_term_that_the_application_swallows(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/swallows")
        self.assertEqual(worker.peer.receive().text, "begun\n")
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.peer.finish().body, b"swallowed")
        self.assertEqual(worker.wait(), 0)
        self.assertEqual(worker.logged(), "swallowed Stop\natexit ran\n")

    def test_term_during_import(self):
        self.file("slow.py", "import time\nprint('importing')\ntime.sleep(600)\n")
        worker = Process("slow", chdir=self.folder)
        self.addCleanup(worker.__exit__)
        worker.peer.receive()
        worker.send_init()
        self.await_log(worker, "importing")
        worker.process.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(), 0)

    def test_int_is_ignored(self):
        worker = self.worker()
        worker.process.send_signal(signal.SIGINT)
        self.assertEqual(self.ask(worker, "hello"), "hello")

    def test_stacks_on_demand(self):
        with tempfile.NamedTemporaryFile() as dump:
            worker = self.worker(dump=dump)
            worker.peer.start(PATH_INFO="/sleeps")
            self.assertEqual(worker.peer.receive().text, "begun\n")
            worker.process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + DEADLINE
            text = ""
            while "in sleeps" not in text:
                self.assertLess(time.monotonic(), deadline, text)
                with open(dump.name) as file:
                    text = file.read()
            self.assertIn("site_app.py", text)
            worker.process.kill()

    def test_crash_leaves_a_stack_in_the_log(self):
        worker = self.worker()
        worker.peer.start(PATH_INFO="/segfault")
        with self.assertRaises((EOFError, ConnectionResetError)):
            worker.peer.finish()
        self.assertEqual(worker.wait(), -signal.SIGSEGV)
        self.assertIn("in segfault", worker.logged())


class Forks(Case):
    def test_a_child_never_answers(self):
        for slots in (1, 2):
            worker = self.worker(slots=slots)
            for _ in range(2):
                self.assertEqual(self.ask(worker, "forks"), "from the parent")
            self.assertEqual(self.end(worker), 0)
            self.assertEqual(worker.logged(), "atexit ran\n")

    def test_a_child_exits_quietly_with_its_status(self):
        worker = self.worker()
        self.assertEqual(self.ask(worker, "fork_exits"), "9")
        self.assertEqual(worker.logged(), "")

    def test_a_child_holds_none_of_the_protocols_descriptors(self):
        with tempfile.TemporaryFile() as dump:
            self.assertEqual(self.ask(self.worker(slots=2, dump=dump), "fork_fds"), "3")

    def test_a_childs_errors_go_to_stderr(self):
        worker = self.worker()
        self.assertEqual(self.ask(worker, "fork_writes"), "5")
        self.assertEqual(worker.logged(), "from the child\n")

    def test_a_child_can_be_terminated(self):
        self.assertEqual(self.ask(self.worker(), "fork_terminated"), "15")


class Failing(Case):
    def failed(self, app, *messages, **init):
        worker = self.worker(app, ready=False, **init)
        self.assertEqual(self.first.kind, "FAILED", worker.logged())
        sentence, _, trace = self.first.text.partition("\n")
        for message in messages:
            self.assertIn(message, sentence)
        self.assertEqual(worker.wait(), 1)
        return trace

    def test_mistakes(self):
        self.failed("nowhere", "no module 'nowhere'")
        self.failed("nowhere.py", "does not exist")
        self.failed("site_app:nothing", "has no 'nothing'")
        self.failed("site_app:sys", "is a module")

    def test_traceback(self):
        self.file("bad.py", "def f():\n    raise ValueError('caf\xe9 \\udc80')\nf()\n")
        trace = self.failed("bad", "cannot be imported: ValueError: caf\xe9 \\udc80 at bad.py:2")
        self.assertTrue(trace.startswith("Traceback (most recent call last):\n"), trace)
        self.assertNotIn("wsgigate_runner", trace)
        self.assertNotIn("/proc/self/fd", trace)

    def test_long_traceback_keeps_its_end(self):
        self.file("bad.py", "raise ValueError('x' * 500000 + 'the end')\n")
        self.assertTrue(self.failed("bad", "cannot be imported").endswith("the end\n"))

    def test_old_interpreter(self):
        # __main__.py as an older Python runs it; it must be compiled by one too, so nothing newer in it.
        with open(os.path.join(SOURCES, "__main__.py"), encoding="ascii") as file:
            source = file.read()
        ast.parse(source, feature_version=(3, 4))
        ours, theirs = socket.socketpair()
        peer = Peer(ours)
        code = "import sys; sys.version_info = (2, 7, 18); sys.version = '2.7.18 (old)'; exec(sys.stdin.read())"
        worker = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        with worker, ours:
            peer.send(frames.INIT)  # before it is asked for, so that communicate() need not be split
            _, log = worker.communicate(source.encode(), DEADLINE)
            self.assertEqual(worker.returncode, 1)
            hello, failed = peer.receive(), peer.receive()
        self.assertEqual((hello.kind, hello.payload[6:]), ("HELLO", b"Python 2.7.18"))
        self.assertEqual(failed.kind, "FAILED")
        self.assertIn("wsgigate needs Python 3.8 or newer; this is Python 2.7.18", failed.text)
        self.assertIn(sys.executable, failed.text)
        self.assertEqual(log.decode(), failed.text)

    def test_import_that_clears_the_module_path(self):
        self.file("bad.py", "import sys\nsys.path.clear()\nsys.modules['traceback'] = None\n1 / 0\n")
        trace = self.failed("bad", "bad cannot be imported: ZeroDivisionError: division by zero at bad.py:4")
        self.assertIn('bad.py", line 4, in <module>', trace)

    def test_threads_that_cannot_be_had(self):
        """Each wants a GiB for its stack, and there are two."""
        self.file(
            "big.py",
            """
            import resource, threading
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), now + (2 << 30)))
            threading.stack_size(1 << 30)
            def application(environ, start_response): pass
            """,
        )
        self.failed("big", " of 5 cannot be started (can't start new thread): use fewer --threads", slots=5)

    def test_chdir(self):
        self.failed("site_app", "--chdir /nowhere: No such file or directory", chdir="/nowhere")

    def test_gateway_gone_before_init(self):
        worker = Process("site_app")
        self.addCleanup(worker.__exit__)
        worker.peer.close()
        self.assertEqual(worker.wait(), 1)


if __name__ == "__main__":
    unittest.main()
