"""--raise-on-timeout: CANCEL, then the signal."""

import os
import platform
import signal
import tempfile
import textwrap
import threading
import time
import unittest

from wsgigate_runner import frames, raising

from .gateway import DEADLINE, Process

SIGNAL = signal.SIGRTMIN + 7
REASON = raising.REASON + " 30s"
LEFT = "client closed the connection"

APP = """
import ctypes, sys, threading, time

noted = []

def application(environ, start_response):
    return globals()[environ["PATH_INFO"][1:]](environ, start_response)

def say(text, start_response):
    start_response("200 OK", [])
    return [text.encode()]

def hello(environ, start_response):
    return say("hello", start_response)

def notes(environ, start_response):
    return say(repr(noted), start_response)

def begin(environ):
    environ["wsgi.errors"].write("begun\\n")

def sleeps(environ, start_response):
    try:
        begin(environ)
        time.sleep(600)
    finally:
        noted.append("finally")

def spins(environ, start_response):
    begin(environ)
    while True:
        pass

def naps(environ, start_response):
    begin(environ)
    while True:
        time.sleep(0.01)

def catches(environ, start_response):
    try:
        begin(environ)
        time.sleep(600)
    except Exception as err:
        noted.append(str(err))
    begin(environ)
    time.sleep(0.3)
    return say("caught", start_response)

def holds(environ, start_response):
    begin(environ)
    getattr(ctypes, "PyDLL", ctypes.CDLL)(None).usleep(400 * 1000)  # PyPy never holds it in C
    noted.append("held")
    return say("held", start_response)

def streams(environ, start_response):
    start_response("200 OK", [])
    def blocks():
        try:
            yield b"one"
            time.sleep(600)
        finally:
            noted.append("closed")
    return blocks()

class Closing:
    def __iter__(self):
        yield b"one"

    def close(self):
        noted.append("closing")
        time.sleep(600)

def closes(environ, start_response):
    start_response("200 OK", [])
    return Closing()

class Napping(Closing):
    def close(self):
        noted.append("closing")
        while True:
            time.sleep(0.01)

def naps_in_close(environ, start_response):
    start_response("200 OK", [])
    return Napping()

def tidies(environ, start_response):
    "Hangs in code that should clean up once the client has gone."
    start_response("200 OK", [])
    def blocks():
        try:
            while True:
                yield b"block"
        finally:
            try:
                begin(environ)
                while True:
                    time.sleep(0.01)
            except Exception as err:
                noted.append(str(err))
    return blocks()

def reads_on(environ, start_response):
    try:
        environ["wsgi.input"].read()
    except OSError as err:
        noted.append(type(err).__name__)
    begin(environ)
    time.sleep(600)

def reads(environ, start_response):
    got = environ["wsgi.input"].read()
    noted.append(len(got))
    begin(environ)
    time.sleep(600)

def writes(environ, start_response):
    "Spends much of its time in the runner's code."
    begin(environ)
    while True:
        environ["wsgi.errors"].write("x" * 1000)
        for _ in range(1000):
            pass
"""


class Worker(Process):
    """A worker of APP with the signal."""

    def __init__(self, **init):
        self.folder = tempfile.TemporaryDirectory()
        with open(os.path.join(self.folder.name, "app.py"), "w") as file:
            file.write(textwrap.dedent(APP))
        self._ending = threading.Event()
        self._again = threading.Thread(target=self._signal_again)
        super().__init__("app:application", chdir=self.folder.name, raise_signal=SIGNAL, **init)
        ready = self.begin()
        assert ready.kind == "READY", ready

    def __exit__(self, *exc):
        self._ending.set()
        if self._again.is_alive():
            self._again.join()
        super().__exit__(*exc)
        self.folder.cleanup()

    def start(self, path, peer=None, **more):
        peer = peer or self.peer
        peer.start(PATH_INFO=path, **more)
        return self.expect("ERRORS", peer)

    def expect(self, kind, peer=None):
        got = (peer or self.peer).receive()
        assert got.kind == kind, got
        return got

    def expect_end(self):
        got = self.peer.receive()
        while got.kind == "ERRORS":
            got = self.peer.receive()
        assert got.kind == "END", got
        return got

    def interrupt(self, peer=None, reason=REASON, request=None):
        (peer or self.peer).send(frames.CANCEL, 0, reason.encode(), request)
        self.process.send_signal(SIGNAL)
        if not self._again.is_alive():
            self._again.start()

    def _signal_again(self):
        """As the gateway does: a signal just before a thread sleeps in the kernel does not wake it."""
        while not self._ending.wait(0.1):
            self.process.send_signal(SIGNAL)

    def notes(self, peer=None):
        return (peer or self.peer).ask(PATH_INFO="/notes").body.decode()


class MainThread(unittest.TestCase):
    def check(self, path, **more):
        """The request ends with END, and the slot serves on."""
        with Worker() as worker:
            worker.start(path, **more)
            worker.interrupt()
            got = worker.peer.finish()
            self.assertEqual((got.end.flags, got.end.text), (frames.END_CANCELLED, REASON))
            self.assertIn("RequestTimeout: " + REASON, got.errors)
            self.assertIn("app.py", got.errors)
            self.assertNotIn("raising.py", got.errors)
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")
            return worker.notes()

    def test_in_sleep(self):
        self.assertEqual(self.check("/sleeps"), "['finally']")

    def test_in_an_endless_loop(self):
        self.check("/spins")

    def test_often_in_the_runners_code(self):
        with Worker() as worker:
            worker.start("/writes")
            worker.interrupt()
            deadline = time.monotonic() + DEADLINE
            got = worker.peer.receive()
            while got.kind == "ERRORS":
                self.assertLess(time.monotonic(), deadline)
                got = worker.peer.receive()
            self.assertEqual((got.kind, got.flags, got.text), ("END", frames.END_CANCELLED, REASON))
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")

    def test_while_blocked_in_sending(self):
        """Nothing is raised in the middle of a frame."""
        with Worker() as worker:
            worker.start("/writes")
            time.sleep(0.2)  # until the socket is full: whether it is by then changes nothing below
            worker.interrupt()
            time.sleep(0.2)
            while worker.peer.receive().kind != "END":  # checks that every frame is whole
                pass
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")

    def test_in_the_body(self):
        with Worker() as worker:
            worker.peer.start(PATH_INFO="/streams")
            worker.expect("HEADERS")
            worker.expect("DATA")
            worker.interrupt()
            end = worker.expect_end()
            self.assertEqual((end.flags, end.text), (frames.END_CANCELLED, REASON))
            self.assertEqual(worker.notes(), "['closed']")

    def test_in_close(self):
        with Worker() as worker:
            worker.peer.start(PATH_INFO="/closes")
            worker.expect("HEADERS")
            worker.expect("DATA")
            worker.expect("DATA")
            worker.interrupt()
            worker.expect("ERRORS")
            self.assertIn("RequestTimeout", worker.expect("WARN").text)
            self.assertEqual(worker.expect_end().flags, frames.END_CANCELLED)
            self.assertEqual(worker.notes(), "['closing']")

    def test_while_it_reads_the_body(self):
        """There CANCEL itself ends the wait."""
        with Worker() as worker:
            worker.peer.start(PATH_INFO="/reads", flags=frames.MORE, CONTENT_LENGTH="5")
            worker.expect("READ")
            worker.interrupt()
            self.assertEqual(worker.expect_end().flags, frames.END_CANCELLED)
            self.assertEqual(worker.notes(), "[]")

    def test_behind_a_body_that_was_read(self):
        """CANCEL came in the same read as the body, and lies in the buffer."""
        with Worker() as worker:
            peer = worker.peer
            peer.start(PATH_INFO="/reads", flags=frames.MORE, CONTENT_LENGTH="5")
            worker.expect("READ")
            body = frames.frame(frames.BODY, frames.LAST, peer.request, b"12345")
            peer.sock.sendall(body + frames.frame(frames.CANCEL, 0, peer.request, REASON.encode()))
            worker.expect("ERRORS")
            worker.process.send_signal(SIGNAL)
            got = peer.finish()
            self.assertIn("RequestTimeout", got.errors)
            self.assertEqual(worker.notes(), "[5]")

    def test_application_that_catches_it_gets_it_once(self):
        with Worker() as worker:
            worker.start("/catches")
            worker.interrupt()
            worker.expect("ERRORS")
            worker.process.send_signal(SIGNAL)
            got = worker.peer.finish()
            self.assertEqual(got.body, b"caught")
            self.assertEqual(worker.notes(), repr([REASON]))

    def test_code_that_holds_the_interpreter(self):
        """Nothing can be raised before it returns; then it is."""
        with Worker() as worker:
            worker.start("/holds")
            worker.interrupt()
            got = worker.peer.finish()
            self.assertIn("RequestTimeout", got.errors)
            self.assertEqual(worker.notes(), "[]")

    def test_between_requests(self):
        with Worker() as worker:
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")
            for _ in range(20):
                worker.interrupt()
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")
            self.assertEqual(worker.notes(), "[]")

    def test_late_for_its_request(self):
        """The request of the CANCEL ended just now: the next must not be hit."""
        with Worker() as worker:
            worker.peer.ask(PATH_INFO="/hello")
            worker.start("/catches")
            worker.interrupt(request=worker.peer.request - 1)
            worker.interrupt(reason="client closed the connection", request=worker.peer.request - 1)
            time.sleep(4 * raising.AGAIN)
            worker.interrupt()  # now it is
            worker.expect("ERRORS")
            self.assertEqual(worker.peer.finish().body, b"caught")
            self.assertEqual(worker.notes(), repr([REASON]))

    def test_client_that_went_away_raises_nothing(self):
        with Worker() as worker:
            worker.start("/holds")
            worker.interrupt(reason="client closed the connection")
            worker.peer.finish()
            self.assertEqual(worker.notes(), "['held']")

    def test_client_that_went_away_before(self):
        with Worker() as worker:
            worker.start("/catches")
            worker.interrupt(reason=LEFT)
            time.sleep(2 * raising.AGAIN)
            worker.interrupt()
            worker.expect("ERRORS")
            self.assertEqual(worker.peer.finish().body, b"caught")
            self.assertEqual(worker.notes(), repr([REASON]))

    def test_client_that_went_away_in_mid_body(self):
        with Worker() as worker:
            worker.peer.start(PATH_INFO="/tidies")
            worker.peer.send(frames.CANCEL, 0, LEFT.encode())
            while worker.peer.receive().kind != "ERRORS":
                pass
            worker.interrupt()
            end = worker.expect_end()
            self.assertEqual((end.flags, end.text), (frames.END_CANCELLED, REASON))
            self.assertEqual(worker.notes(), repr([REASON]))

    def test_client_that_went_away_while_its_body_was_read(self):
        with Worker() as worker:
            worker.peer.start(PATH_INFO="/reads_on", flags=frames.MORE, CONTENT_LENGTH="5")
            worker.expect("READ")
            worker.peer.send(frames.CANCEL, 0, LEFT.encode())
            worker.expect("ERRORS")
            worker.interrupt()
            got = worker.peer.finish()
            self.assertEqual(got.end.flags, frames.END_CANCELLED)
            self.assertIn("RequestTimeout: " + REASON, got.errors)
            self.assertEqual(worker.notes(), "['ClientGone']")

    def test_two_cancels_after_the_end(self):
        with Worker() as worker:
            for _ in range(3):
                worker.peer.ask(PATH_INFO="/hello")
                worker.interrupt(reason=LEFT)
                worker.interrupt()
            worker.start("/holds")
            self.assertEqual(worker.peer.finish().body, b"held")
            self.assertEqual(worker.notes(), "['held']")

    def test_requests_that_end_at_that_moment(self):
        """Wherever the signal hits, the slot answers on, in whole frames."""
        with Worker() as worker:
            for _ in range(300):
                worker.peer.start(PATH_INFO="/hello")
                worker.interrupt()
                got = worker.peer.finish()
                self.assertIn(got.end.flags, (0, frames.END_FAILED, frames.END_CANCELLED))
            self.assertEqual(worker.peer.ask(PATH_INFO="/hello").body, b"hello")
            self.assertEqual(worker.logged(), "")


class Threads(unittest.TestCase):
    def test_in_the_thread_that_hangs(self):
        with Worker(slots=3) as worker:
            if platform.python_implementation() == "PyPy":
                self.check_says_that_it_cannot(worker, *worker.peers)
            else:
                for path in ("/naps", "/spins"):
                    self.check_raised(worker, path, *worker.peers)

    def check_raised(self, worker, path, hung, other, third):
        worker.start(path, hung)
        worker.start("/naps", other)
        worker.interrupt(hung)
        got = hung.finish()
        self.assertEqual((got.end.flags, got.end.text), (frames.END_CANCELLED, REASON))
        self.assertIn("RequestTimeout: " + REASON, got.errors)
        self.assertEqual(third.ask(PATH_INFO="/hello").body, b"hello")
        worker.interrupt(other)
        other.finish()
        self.assertEqual(hung.ask(PATH_INFO="/hello").body, b"hello")

    def test_in_close(self):
        if platform.python_implementation() == "PyPy":
            self.assertIsNone(raising._raise_in_threads())
            return
        with Worker(slots=2) as worker:
            hung, other = worker.peers
            hung.start(PATH_INFO="/naps_in_close")
            for kind in ("HEADERS", "DATA", "DATA"):
                last = worker.expect(kind, hung)
            self.assertEqual(last.flags, frames.LAST)
            worker.interrupt(hung, reason=LEFT)
            worker.interrupt(hung)
            self.assertIn("RequestTimeout", worker.expect("ERRORS", hung).text)
            self.assertIn("RequestTimeout", worker.expect("WARN", hung).text)
            end = worker.expect("END", hung)
            self.assertEqual((end.flags, end.text), (frames.END_CANCELLED, REASON))
            worker.interrupt(hung)  # it crossed the END
            time.sleep(2 * raising.AGAIN)
            self.assertEqual(hung.ask(PATH_INFO="/hello").body, b"hello")
            self.assertEqual(other.ask(PATH_INFO="/hello").body, b"hello")
            self.assertEqual(worker.notes(), "['closing']")

    def test_cancels_after_the_end(self):
        with Worker(slots=2) as worker:
            for _ in range(3):
                for peer in worker.peers:
                    self.assertEqual(peer.ask(PATH_INFO="/hello").body, b"hello")
                    worker.interrupt(peer, reason=LEFT)
                    worker.interrupt(peer)
                time.sleep(raising.AGAIN)
            self.assertEqual(worker.notes(), "[]")
            self.assertEqual(worker.logged(), "")

    def check_says_that_it_cannot(self, worker, hung, other, third):
        for peer in (hung, third):
            worker.start("/naps", peer)
            worker.interrupt(peer)
            time.sleep(2 * raising.AGAIN)
        self.assertEqual(other.ask(PATH_INFO="/hello").body, b"hello")
        self.assertEqual(worker.logged().count("cannot raise an exception in another thread"), 1)
        worker.process.send_signal(signal.SIGKILL)

    def test_only_what_is_cancelled_is_hit(self):
        with Worker(slots=2) as worker:
            first, second = worker.peers
            worker.start("/naps", first)
            worker.interrupt(second, request=1)
            self.assertEqual(second.ask(PATH_INFO="/hello").body, b"hello")
            time.sleep(2 * raising.AGAIN)
            worker.interrupt(first, reason="client closed the connection")
            time.sleep(2 * raising.AGAIN)
            first.sock.setblocking(False)
            with self.assertRaises(BlockingIOError, msg="it still naps"):
                first.sock.recv(1)
            worker.process.send_signal(signal.SIGKILL)

    def test_requests_that_end_at_that_moment(self):
        """A slot ends if it cannot tell how much of an answer is sent; the process lives."""
        with Worker(slots=2) as worker:
            hit, other = worker.peers
            for _ in range(200):
                try:
                    hit.start(PATH_INFO="/hello")
                    worker.interrupt(hit)
                    while hit.receive().kind != "END":
                        pass
                except OSError:
                    break
                self.assertEqual(other.ask(PATH_INFO="/hello").body, b"hello")
            self.assertIsNone(worker.process.poll())
            self.assertNotIn("Traceback", worker.logged())


if __name__ == "__main__":
    unittest.main()
