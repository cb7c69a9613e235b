"""PEP 3333's rules for start_response, the body and failures, seen by the gateway."""

import functools
import gc
import sys
import threading
import unittest

from wsgigate_runner import debug, frames

from .gateway import InProcess, answer

OK = "200 OK"
PLAIN = [("Content-Type", "text/plain")]


class Closing:
    """An iterable that counts calls of close()."""

    def __init__(self, blocks=(), error=None):
        self.blocks, self.error, self.closed = blocks, error, 0

    def __iter__(self):
        return iter(self.blocks)

    def close(self):
        self.closed += 1
        if self.error:
            raise self.error


def app_of(result, status=OK, headers=()):
    def app(environ, start_response):
        start_response(status, list(headers))
        return result() if callable(result) else result

    return app


class Case(unittest.TestCase):
    def good(self, got, body, status=OK):
        self.assertEqual((got.status, got.body), (status, body), got.frames)
        self.assertEqual((got.end.flags, got.end.text), (0, ""), got.frames)
        return got

    def failed(self, got, message, status=None):
        self.assertEqual(got.end.flags, frames.END_FAILED, got.frames)
        self.assertIn(message, got.end.text)
        self.assertNotIn("\n", got.end.text)
        self.assertEqual(got.status, status)
        self.assertFalse(got.last)
        return got


class Bodies(Case):
    def test_one_block(self):
        for result in ([b"hello"], (b"hello",)):
            got = self.good(answer(app_of(result, headers=PLAIN)), b"hello")
            self.assertEqual(got.headers, PLAIN + [("Content-Length", "5")])
            self.assertEqual(got.kinds, ["HEADERS", "DATA", "END"])
            self.assertTrue(got.last)

    def test_one_block_comes_in_one_piece(self):
        with InProcess(app_of([b"hello"])) as peer:
            peer.start()
            first = peer.sock.recv(4096)
        self.assertTrue(first.endswith(frames.frame(frames.END, 0, 1)), first)

    def test_long_blocks(self):
        for size in (frames.COPY_BELOW - 1, frames.COPY_BELOW, 1 << 20, (5 << 20) // 2):
            block = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            got = self.good(answer(app_of([block])), block)
            self.assertEqual(got.header("Content-Length"), str(size))
            self.assertTrue(got.last)

    def test_given_content_length_is_kept(self):
        got = self.good(answer(app_of([b"hello"], headers=[("content-length", "5")])), b"hello")
        self.assertEqual(got.headers, [("content-length", "5")])

    def test_empty_list(self):
        for result in ([], (), [b""], (b"",)):
            got = self.good(answer(app_of(result)), b"")
            self.assertEqual(got.headers, [("Content-Length", "0")])
            self.assertTrue(got.last)

    def test_generator_has_no_content_length(self):
        got = self.good(answer(app_of(lambda: (b for b in [b"a", b"", b"b"]))), b"ab")
        self.assertEqual(got.headers, [])
        self.assertEqual(got.kinds, ["HEADERS", "DATA", "DATA", "END"])

    def test_empty_generator(self):
        got = self.good(answer(app_of(lambda: iter(()))), b"")
        self.assertEqual((got.headers, got.kinds), ([], ["HEADERS", "END"]))

    def test_many_blocks(self):
        got = self.good(answer(app_of([b"a", b"b", b"", b"c"])), b"abc")
        self.assertIsNone(got.header("Content-Length"))

    def test_one_block_of_any_sized_iterable(self):
        class Sized(Closing):
            def __len__(self):
                return len(self.blocks)

        result = Sized([b"hello"])
        got = self.good(answer(app_of(result)), b"hello")
        self.assertEqual(got.header("Content-Length"), "5")
        self.assertEqual(result.closed, 1)

    def test_sequence_protocol_only(self):
        class Old:
            def __getitem__(self, n):
                return [b"a", b"b"][n]

        self.good(answer(app_of(Old())), b"ab")

    def test_raising_len_is_ignored(self):
        class Odd(Closing):
            def __len__(self):
                raise RuntimeError("no idea")

        self.good(answer(app_of(Odd([b"a"]))), b"a")

    def test_bytes_subclass(self):
        class Block(bytes):
            pass

        self.good(answer(app_of([Block(b"a")])), b"a")
        self.good(answer(app_of([Block(b"a"), Block(b"b" * 50000)])), b"a" + b"b" * 50000)

    def test_blocks_are_never_held_back(self):
        step = threading.Event()

        def blocks():
            yield b"first"
            step.wait(30)
            yield b"second"

        with InProcess(app_of(blocks)) as peer:
            peer.start()
            self.assertEqual(peer.receive().kind, "HEADERS")
            self.assertEqual(peer.receive().payload, b"first")
            step.set()
            self.assertEqual(peer.receive().payload, b"second")
            self.assertEqual(peer.receive().kind, "END")

    def test_reaching_content_length_ends_the_response_before_close(self):
        step = threading.Event()

        class Slow(Closing):
            def close(self):
                step.wait(30)

        with InProcess(app_of(Slow([b"ab", b"cd"]), headers=[("Content-Length", "4")])) as peer:
            peer.start()
            self.assertEqual(peer.receive().flags, 0)
            self.assertEqual(peer.receive().flags, 0)
            last = peer.receive()
            self.assertEqual((last.payload, last.flags), (b"cd", frames.LAST))
            step.set()
            self.assertEqual(peer.receive().kind, "END")

    def test_body_is_complete_before_a_slow_close(self):
        step = threading.Event()

        class Slow(Closing):
            def close(self):
                step.wait(30)

        with InProcess(app_of(Slow([b"ab", b"cd"]))) as peer:
            peer.start()
            self.assertEqual([peer.receive().kind for _ in range(3)], ["HEADERS", "DATA", "DATA"])
            last = peer.receive()
            self.assertEqual((last.kind, last.payload, last.flags), ("DATA", b"", frames.LAST))
            step.set()
            self.assertEqual(peer.receive().kind, "END")

    def test_code_behind_the_last_block_runs(self):
        ran = []

        def blocks():
            yield b"abcd"
            ran.append(True)

        self.good(answer(app_of(blocks, headers=[("Content-Length", "4")])), b"abcd")
        self.assertEqual(ran, [True])


class ContentLength(Case):
    def test_too_long_is_cut(self):
        for result in ([b"hello"], [b"he", b"llo"], [b"hell", b"o"], [b"h", b"e", b"ll", b"o" * 50000]):
            got = self.good(answer(app_of(result, headers=[("Content-Length", "4")])), b"hell")
            self.assertTrue(got.last)
            self.assertEqual(len(got.warnings), 1, got.frames)
            self.assertIn("longer than its Content-Length of 4", got.warnings[0])

    def test_too_long_stops_iterating(self):
        asked = []

        def blocks():
            for n in range(100):
                asked.append(n)
                yield b"xx"

        self.good(answer(app_of(blocks, headers=[("Content-Length", "5")])), b"xxxxx")
        self.assertEqual(len(asked), 3)

    def test_zero(self):
        got = self.good(answer(app_of([b"hello"], headers=[("Content-Length", "0")])), b"")
        self.assertEqual(len(got.warnings), 1)

    def test_too_short_fails_with_both_counts(self):
        for result in ([b"hello"], [b"he", b"llo"], Closing([b"hello"])):
            got = answer(app_of(result, headers=[("Content-Length", "10")]))
            self.failed(got, "the body has 5 bytes but Content-Length says 10", status=OK)
            self.assertEqual(got.body, b"hello")

    def test_empty_body_with_a_length_fails_before_the_header(self):
        self.failed(answer(app_of([], headers=[("Content-Length", "10")])), "0 bytes but Content-Length says 10")


class NoBody(Case):
    def test_head(self):
        got = self.good(answer(app_of([b"hello"]), REQUEST_METHOD="HEAD"), b"")
        self.assertEqual(got.headers, [("Content-Length", "5")])
        self.assertTrue(got.last)
        self.assertEqual(len(got.warnings), 1)
        self.assertIn("HEAD", got.warnings[0])

    def test_head_of_a_proper_application(self):
        got = self.good(answer(app_of([], headers=[("Content-Length", "5")]), REQUEST_METHOD="HEAD"), b"")
        self.assertEqual((got.headers, got.warnings), ([("Content-Length", "5")], []))

    def test_statuses_without_body(self):
        for status in ("204 No Content", "304 Not Modified", "103 Early Hints"):
            got = self.good(answer(app_of([b"hello"], status)), b"", status)
            self.assertEqual(got.headers, [])
            self.assertIn("no body", got.warnings[0])
            got = self.good(answer(app_of([], status)), b"", status)
            self.assertEqual((got.headers, got.warnings), ([], []))

    def test_does_not_iterate_needlessly_and_closes(self):
        asked = []

        def blocks():
            for n in range(100):
                asked.append(n)
                yield b"x"

        result = Closing(blocks())
        self.good(answer(app_of(result), REQUEST_METHOD="HEAD"), b"")
        self.assertEqual((len(asked), result.closed), (1, 1))

    def test_write_is_dropped(self):
        def app(environ, start_response):
            write = start_response(OK, [])
            write(b"a")
            write(b"b")
            return [b"c"]

        got = self.good(answer(app, REQUEST_METHOD="HEAD"), b"")
        self.assertEqual(len(got.warnings), 1)

    def test_environ_may_change_the_method(self):
        def app(environ, start_response):
            environ["REQUEST_METHOD"] = "GET"
            start_response(OK, [])
            return [b"hello"]

        self.good(answer(app, REQUEST_METHOD="HEAD"), b"")


class StartResponse(Case):
    def test_every_kind_of_application(self):
        def function(environ, start_response):
            start_response(OK, [])
            return [b"x"]

        def generator(environ, start_response):
            start_response(OK, [])
            yield b"x"

        class Instance:
            def __call__(self, environ, start_response):
                return function(environ, start_response)

            method = __call__

        class Iterating:
            def __init__(self, environ, start_response):
                self.start = start_response

            def __iter__(self):
                self.start(OK, [])
                yield b"x"

        def partial(more, environ, start_response):
            return function(environ, start_response)

        @functools.wraps(function)
        def decorated(*args):
            return function(*args)

        for app in (
            function,
            generator,
            Instance(),
            Instance().method,
            Iterating,
            functools.partial(partial, 1),
            decorated,
            lambda e, s: function(e, s),
        ):
            self.good(answer(app), b"x")

    def test_headers_wait_for_the_first_block_that_is_not_empty(self):
        def app(environ, start_response):
            start_response(OK, [("X-A", "1")])
            yield b""
            try:
                raise ValueError("late")
            except ValueError:
                start_response("500 Oops", [("X-B", "2")], sys.exc_info())
            yield b"sorry"

        got = self.good(answer(app), b"sorry", "500 Oops")
        self.assertEqual(got.headers, [("X-B", "2")])

    def test_started_by_the_first_block(self):
        def app(environ, start_response):
            yield b""
            start_response(OK, [])
            yield b"x"

        self.good(answer(app), b"x")

    def test_started_too_late(self):
        def app(environ, start_response):
            yield b"x"
            start_response(OK, [])

        self.failed(answer(app), "start_response() was not called")

    def test_never_called(self):
        for result in ([], [b"x"], [b"x", b"y"], iter(())):
            self.failed(answer(lambda environ, start_response, r=result: r), "start_response() was not called")

    def test_twice(self):
        def app(environ, start_response):
            start_response(OK, [])
            start_response(OK, [])
            return []

        self.failed(answer(app), "start_response() was called twice")

    def test_twice_even_if_the_first_raised(self):
        def app(environ, start_response):
            try:
                start_response("banana", [])
            except ValueError:
                start_response(OK, [])
            return [b"x"]

        self.failed(answer(app), "even one that raised")

    def test_swallowed_refusal_is_no_response(self):
        def app(environ, start_response):
            try:
                start_response("banana", [])
            except ValueError:
                pass
            return [b"x"]

        self.failed(answer(app), "must be called again with exc_info")

    def test_refusal_replaced_with_exc_info(self):
        def app(environ, start_response):
            try:
                start_response("banana", [])
            except ValueError:
                start_response("500 Oops", [], sys.exc_info())
            return [b"x"]

        self.good(answer(app), b"x", "500 Oops")

    def test_exc_info_at_the_first_call(self):
        def app(environ, start_response):
            start_response(OK, [], (ValueError, ValueError("x"), None))
            return [b"x"]

        self.good(answer(app), b"x")

    def test_exc_info_replaces_content_length(self):
        def app(environ, start_response):
            start_response(OK, [("Content-Length", "100")])
            start_response("500 Oops", [], (ValueError, ValueError("x"), None))
            return [b"x"]

        self.assertEqual(self.good(answer(app), b"x", "500 Oops").headers, [("Content-Length", "1")])

    def test_exc_info_after_headers_reraises_with_its_traceback(self):
        seen = []

        def culprit():
            raise KeyError("original")

        def app(environ, start_response):
            start_response(OK, [])
            yield b"x"
            try:
                culprit()
            except KeyError:
                info = sys.exc_info()
            try:
                start_response("500 Oops", [], info)
            except KeyError as err:
                seen.append(err is info[1])
                raise

        got = self.failed(answer(app), "KeyError: 'original'", status=OK)
        self.assertEqual(seen, [True])
        self.assertIn("in culprit", got.errors)

    def test_bad_exc_info(self):
        def app(environ, start_response):
            start_response(OK, [], "error")

        self.failed(answer(app), "sys.exc_info()")

    def test_wrong_calls(self):
        self.failed(answer(lambda e, s: s()), "TypeError")
        self.failed(answer(lambda e, s: s(b"200 OK", [])), "status must be str")
        self.failed(answer(lambda e, s: s(OK, [("A", "b\nc")])), "control character")
        self.failed(answer(lambda e, s: s(OK, [("Connection", "close")])), "hop-by-hop")

    def test_keywords(self):
        self.good(answer(lambda e, s: s(status=OK, headers=[], exc_info=None) and [b"x"]), b"x")


class Write(Case):
    def app(self, *written, result=(), headers=()):
        def app(environ, start_response):
            write = start_response(OK, list(headers))
            for block in written:
                self.assertIsNone(write(block))
            return list(result)

        return app

    def test_before_the_iterable(self):
        got = self.good(answer(self.app(b"a", b"", b"b", result=[b"c"])), b"abc")
        self.assertEqual(got.headers, [])

    def test_alone(self):
        self.assertEqual(self.good(answer(self.app(b"a")), b"a").headers, [])
        self.assertEqual(self.good(answer(self.app(b"")), b"").headers, [])
        self.assertEqual(self.good(answer(self.app(b"", result=[b"x"])), b"x").headers, [])

    def test_sends_at_once(self):
        step = threading.Event()

        def app(environ, start_response):
            start_response(OK, [])(b"now")
            step.wait(30)
            return []

        with InProcess(app) as peer:
            peer.start()
            self.assertEqual([peer.receive().kind, peer.receive().payload], ["HEADERS", b"now"])
            step.set()
            peer.receive()

    def test_content_length_counts_it(self):
        self.good(answer(self.app(b"ab", result=[b"cd"], headers=[("Content-Length", "4")])), b"abcd")
        got = self.good(answer(self.app(b"ab", b"cd", headers=[("Content-Length", "3")])), b"abc")
        self.assertEqual(len(got.warnings), 1)
        self.failed(answer(self.app(b"ab", headers=[("Content-Length", "3")])), "2 bytes but", status=OK)

    def test_str(self):
        self.failed(answer(self.app("text")), "write() takes bytes, not str: encode it")

    def test_after_the_end(self):
        kept = []

        def app(environ, start_response):
            kept.append(start_response(OK, []))
            return [b"x"]

        with InProcess(app) as peer:
            peer.ask()
            with self.assertRaisesRegex(RuntimeError, "after the end"):
                kept[0](b"late")
            self.good(peer.ask(), b"x")


class WrongResults(Case):
    def test_sentences(self):
        for result, message in [
            (["text"], "WSGI body blocks must be bytes, not str: encode it, for example 'text'.encode('utf-8')"),
            ([5], "must be bytes, not int"),
            ([None], "must be bytes, not NoneType"),
            ([bytearray(b"x")], "use bytes(block)"),
            ([memoryview(b"x")], "use bytes(block)"),
            (b"hello", "returned bytes: return a list of bytes blocks, for example [body]"),
            ("hello", "returned str: return a list of bytes blocks, for example [body.encode('utf-8')]"),
            (None, "returned None: return an iterable"),
            (5, "returned int, which is not iterable"),
            ({"a": 1}, "must be bytes, not str"),
            (lambda: (x for x in ["text"]), "must be bytes, not str"),
        ]:
            with self.subTest(result=result):
                self.failed(answer(app_of(result)), message)

    def test_in_mid_body(self):
        self.failed(answer(app_of([b"a", "b"])), "not str", status=OK)

    def test_raising_iter(self):
        class Odd:
            def __iter__(self):
                raise TypeError("odd iterator")

        self.failed(answer(app_of(Odd())), "odd iterator")

    def test_coroutine(self):
        async def app(scope, receive):
            return []

        self.failed(answer(app), "ASGI")


class Failures(Case):
    def test_before_headers(self):
        def app(environ, start_response):
            start_response(OK, [])
            return 1 / 0

        got = self.failed(answer(app), "ZeroDivisionError: division by zero at ")
        self.assertRegex(got.end.text, r"test_response\.py:\d+$")
        self.assertIn("Traceback (most recent call last)", got.errors)
        self.assertIn("return 1 / 0", got.errors)
        self.assertNotIn("slot.py", got.errors)

    def test_own_frames_are_left_out_but_the_callers_line_is_shown(self):
        def app(environ, start_response):
            start_response("banana", [])

        got = self.failed(answer(app), "test_response.py")
        self.assertNotIn("headers.py", got.errors)

    def test_in_mid_body(self):
        def blocks():
            yield b"x"
            raise KeyError("boom")

        result = Closing(blocks())
        got = self.failed(answer(app_of(result)), "KeyError: 'boom'", status=OK)
        self.assertEqual((got.body, result.closed), (b"x", 1))

    def test_after_the_body_is_complete(self):
        def blocks():
            yield b"x"
            raise KeyError("boom")

        got = self.good(answer(app_of(blocks, headers=[("Content-Length", "1")])), b"x")
        self.assertIn("KeyError: 'boom'", got.warnings[0])
        self.assertIn("Traceback", got.errors)

    def test_exits_of_the_application(self):
        for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")):

            def app(environ, start_response, error=error):
                raise error

            with InProcess(app) as peer:
                for _ in range(2):
                    self.failed(peer.ask(), type(error).__name__)

    def test_connection_errors_of_the_application_are_its_own(self):
        for kind in (ConnectionResetError, BrokenPipeError, ConnectionAbortedError):

            def app(environ, start_response, kind=kind):
                raise kind("database")

            self.failed(answer(app), kind.__name__ + ": database")

    def test_exception_that_cannot_be_shown(self):
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError("no")

        def app(environ, start_response):
            raise Odd

        self.failed(answer(app), "Odd")

    def test_long_and_many_lined_messages(self):
        def app(environ, start_response):
            raise ValueError("line\n" * 100000)

        self.assertLess(len(self.failed(answer(app), "ValueError: line line").end.text), 700)

    def test_causes_are_logged(self):
        def app(environ, start_response):
            try:
                raise KeyError("inner")
            except KeyError as err:
                raise ValueError("outer") from err

        got = self.failed(answer(app), "ValueError: outer")
        self.assertIn("KeyError: 'inner'", got.errors)

    def test_the_slot_lives_on(self):
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/bad":
                raise ValueError
            start_response(OK, [])
            return [b"x"]

        with InProcess(app) as peer:
            for path in ("/bad", "/", "/bad", "/"):
                got = peer.ask(PATH_INFO=path)
                self.assertEqual(got.end.flags, frames.END_FAILED if path == "/bad" else 0)


class Close(Case):
    def test_once_whatever_happens(self):
        def failing():
            yield b"x"
            raise ValueError

        for make in (
            lambda: Closing([b"x"]),
            lambda: Closing([]),
            lambda: Closing([b"x", "y"]),
            lambda: Closing(["y"]),
            lambda: Closing(failing()),
            lambda: Closing([b"xxxx", b"xxxx", b"xxxx"]),
            lambda: Closing(None),
        ):
            for headers in ((), [("Content-Length", "5")]):
                result = make()
                answer(app_of(result, headers=headers))
                self.assertEqual(result.closed, 1)

    def test_closed_before_the_slot_is_free(self):
        result = Closing([b"x"])
        with InProcess(app_of(result)) as peer:
            peer.ask()
            self.assertEqual(result.closed, 1)

    def test_exception_in_close(self):
        for blocks in ([b"x"], [b"x", b"y"], []):
            got = self.good(answer(app_of(Closing(blocks, ValueError("closing")))), b"".join(blocks))
            self.assertEqual(len(got.warnings), 1)
            self.assertIn("close() of the body raised ValueError: closing", got.warnings[0])
            self.assertIn("Traceback", got.errors)

    def test_exception_in_close_after_a_failure(self):
        got = answer(app_of(Closing([b"x", 5], ValueError("closing"))))
        self.failed(got, "not int", status=OK)
        self.assertIn("closing", got.errors)


class Memory(Case):
    def test_ordinary_requests_leave_nothing_behind(self):
        def app(environ, start_response):
            start_response(OK, PLAIN)
            if environ["PATH_INFO"] == "/stream":
                return (block for block in [Kept(b"x"), b"y"])
            return [Kept(b"x")]

        class Kept(bytes):
            """A block whose end can be seen."""

            def __init__(self, *args):
                live.append(1)

            def __del__(self):
                live.pop()

        live = []
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        with InProcess(app) as peer:
            for path in ("/", "/stream") * 5:
                peer.ask(PATH_INFO=path)
        if sys.implementation.name != "cpython":
            gc.collect()  # it does not count references
        self.assertEqual(live, [])


class Cancelled(Case):
    def test_iteration_stops_and_close_is_called(self):
        step = threading.Event()

        def blocks():
            yield b"first"
            step.wait(30)
            while True:
                yield b"more"

        result = Closing(blocks())
        with InProcess(app_of(result)) as peer:
            peer.start()
            peer.receive()
            self.assertEqual(peer.receive().payload, b"first")
            peer.send(frames.CANCEL, 0, b"client closed the connection")
            step.set()
            got = peer.receive()
            self.assertEqual((got.kind, got.flags), ("END", frames.END_CANCELLED))
            self.assertEqual(got.text, "client closed the connection")
            self.assertEqual(result.closed, 1)

    def test_the_first_block_is_sent_without_looking(self):
        step = threading.Event()

        def app(environ, start_response):
            start_response(OK, [])
            step.wait(30)
            return [b"x"]

        with InProcess(app) as peer:
            peer.start()
            peer.send(frames.CANCEL, 0, b"gone")
            step.set()
            self.good(peer.finish(), b"x")
            self.good(peer.ask(), b"x")  # the CANCEL was the other request's

    def test_write_raises(self):
        seen = []
        step = threading.Event()

        def app(environ, start_response):
            write = start_response(OK, [])
            write(b"first")
            step.wait(30)
            try:
                write(b"second")
            except OSError as err:
                seen.append(str(err))
                raise
            return []

        with InProcess(app) as peer:
            peer.start()
            peer.receive()
            peer.receive()
            peer.send(frames.CANCEL, 0, b"gone")
            step.set()
            got = peer.receive()
            self.assertEqual((got.kind, got.flags, got.text), ("END", frames.END_CANCELLED, "gone"))
        self.assertEqual(seen, ["the client is gone: gone"])

    def test_another_requests_cancel_is_ignored(self):
        step = threading.Event()

        def blocks():
            yield b"a"
            step.wait(30)
            yield b"b"
            yield b"c"

        with InProcess(app_of(blocks)) as peer:
            peer.start()
            peer.receive()
            peer.receive()
            peer.send(frames.CANCEL, 0, b"old", request=77)
            step.set()
            self.assertEqual([peer.receive().payload, peer.receive().payload], [b"b", b"c"])
            self.assertEqual(peer.receive().flags, 0)


class Debug(Case):
    def test_error_page(self):
        def app(environ, start_response):
            raise ValueError("<script>")

        with InProcess(app, debug.error_page) as peer:
            got = peer.ask()
        self.assertEqual(got.kinds, ["ERRORS", "HEADERS", "DATA", "END"])
        self.assertEqual(got.status, "500 Internal Server Error")
        self.assertEqual(got.header("Content-Type"), "text/html; charset=utf-8")
        self.assertEqual(got.header("Content-Length"), str(len(got.body)))
        self.assertEqual(got.end.flags, frames.END_FAILED)
        self.assertIn(b"&lt;script&gt;", got.body)
        self.assertIn(b"Traceback", got.body)
        self.assertNotIn(b"<script>", got.body)

    def test_error_page_for_head(self):
        with InProcess(lambda e, s: 1 / 0, debug.error_page) as peer:
            got = peer.ask(REQUEST_METHOD="HEAD")
        self.assertEqual((got.body, got.status[:3]), (b"", "500"))

    def test_no_page_once_headers_are_sent(self):
        with InProcess(app_of([b"x", 5]), debug.error_page) as peer:
            self.failed(peer.ask(), "not int", status=OK)

    def test_validator_finds_nothing_in_the_gateway(self):
        def app(environ, start_response):
            environ["wsgi.input"].read(10)
            environ["wsgi.errors"].write("note")
            environ["wsgi.errors"].flush()
            start_response(OK, PLAIN)
            return [b"x"]

        validated = debug.validated(app)
        self.good(answer(validated), b"x")
        self.good(answer(validated, body=b"ab", flags=1, feed=[(1, b"c")], CONTENT_LENGTH="3"), b"x")

    def test_validator_complains(self):
        self.failed(answer(debug.validated(app_of([b"x"]))), "No Content-Type header")


if __name__ == "__main__":
    unittest.main()
