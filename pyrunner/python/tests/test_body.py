"""wsgi.input, fcgi.data and wsgi.errors."""

import contextlib
import hashlib
import io
import os
import random
import threading
import unittest

from wsgigate_runner import frames

from .gateway import InProcess, answer

LAST, MORE = frames.LAST, frames.MORE


def reading(read):
    """An application that returns what read(wsgi.input) gives."""

    def app(environ, start_response):
        got = read(environ["wsgi.input"])
        start_response("200 OK", [])
        return [got if isinstance(got, bytes) else repr(got).encode()]

    return app


def through(read, body=b"", flags=0, feed=()):
    return answer(reading(read), body=body, flags=flags, feed=feed)


class Input(unittest.TestCase):
    """Each method, with a body that came whole and with one that is pulled."""

    BODY = b"one\ntwo\n\nfour"

    def check(self, read, expected):
        expected = expected if isinstance(expected, bytes) else repr(expected).encode()
        for body, flags, feed in (
            (self.BODY, 0, []),
            (self.BODY, MORE, [(LAST, b"")]),
            (b"", MORE, [(LAST, self.BODY)]),
            (self.BODY[:2], MORE, [(0, self.BODY[2:5]), (0, self.BODY[5:]), (LAST, b"")]),
            (b"", MORE, [(0, self.BODY[i : i + 1]) for i in range(len(self.BODY))] + [(LAST, b"")]),
        ):
            got = through(read, body, flags, feed)
            self.assertEqual(got.body, expected, got.frames)
            self.assertEqual(got.end.flags, 0)

    def test_read(self):
        self.check(lambda f: f.read(), self.BODY)
        self.check(lambda f: f.read(-1), self.BODY)
        self.check(lambda f: f.read(1000), self.BODY)
        self.check(lambda f: [f.read(0), f.read(5), f.read(100)], [b"", self.BODY[:5], self.BODY[5:]])

    def test_end_is_for_ever(self):
        self.check(
            lambda f: [f.read(), f.read(), f.read(5), f.readline(), f.readlines()], [self.BODY, b"", b"", b"", []]
        )

    def test_lines(self):
        lines = [b"one\n", b"two\n", b"\n", b"four"]
        self.check(lambda f: list(f), lines)
        self.check(lambda f: f.readlines(), lines)
        self.check(lambda f: f.readlines(5), lines[:2])
        self.check(lambda f: [f.readline() for _ in range(5)], lines + [b""])
        self.check(lambda f: [f.readline(2), f.readline(2), f.readline(-1)], [b"on", b"e\n", b"two\n"])

    def test_mixed(self):
        self.check(lambda f: [f.readline(), f.read(2), next(f), f.read()], [b"one\n", b"tw", b"o\n", b"\nfour"])

    def test_readinto(self):
        def read(stream):
            target = bytearray(6)
            return [stream.readinto(target), bytes(target)]

        self.check(read, [6, self.BODY[:6]])

    def test_no_body(self):
        self.assertEqual(through(lambda f: f.read()).body, b"")
        self.assertEqual(through(lambda f: f.read(), flags=MORE, feed=[(LAST, b"")]).body, b"")

    def test_random_reads(self):
        chance = random.Random(3875)
        for _ in range(50):
            data = os.urandom(chance.randrange(3000)).replace(b"\0", b"\n")
            cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
            pieces = [data[a:b] for a, b in zip([0] + cuts, cuts + [len(data)])]
            calls = [(chance.choice(["read", "readline"]), chance.randrange(400)) for _ in range(40)]

            def read(stream, calls=calls):
                return b"".join(getattr(stream, name)(size) for name, size in calls) + stream.read()

            feed = [(0, piece) for piece in pieces[1:] if piece] + [(LAST, b"")]
            self.assertEqual(through(read, pieces[0], MORE, feed).body, data)


class Pulling(unittest.TestCase):
    def test_an_application_that_does_not_read_asks_for_nothing(self):
        got = through(lambda f: b"x", flags=MORE)
        self.assertNotIn("READ", got.kinds)

    def test_large_body(self):
        block = os.urandom(64 << 10)
        feed = [(0, block)] * 40 + [(LAST, block)]

        def digest(stream):
            seen = hashlib.sha256()
            while True:
                part = stream.read(100000)
                if not part:
                    return seen.hexdigest()
                seen.update(part)

        got = through(digest, b"start", MORE, feed)
        self.assertEqual(eval(got.body), hashlib.sha256(b"start" + block * 41).hexdigest())

    def test_one_huge_read(self):
        block = os.urandom(64 << 10)
        got = through(lambda f: f.read(3 << 20), flags=MORE, feed=[(0, block)] * 39 + [(LAST, block)])
        self.assertEqual(got.body, block * 40)

    def test_broken(self):
        def read(stream):
            out = []
            for _ in range(2):
                try:
                    out.append(stream.read())
                except OSError as err:
                    out.append(str(err))
            return out

        got = through(read, b"abc", MORE, [(0, b"d"), (frames.BROKEN, b"5 of 9 bytes")])
        self.assertEqual(eval(got.body), ["the request's body ended early: 5 of 9 bytes"] * 2)

    def test_broken_and_not_caught(self):
        got = through(lambda f: f.read(), flags=MORE, feed=[(frames.BROKEN, b"why")])
        self.assertEqual(got.end.flags, frames.END_FAILED)
        self.assertIn("OSError: the request's body ended early: why", got.end.text)

    def test_cancel_while_waiting(self):
        seen = []

        def app(environ, start_response):
            for _ in range(2):
                try:
                    environ["wsgi.input"].read()
                except ConnectionAbortedError as err:
                    seen.append(str(err))
            start_response("200 OK", [])
            raise OSError("unrelated")

        with InProcess(app) as peer:
            peer.start(flags=MORE)
            self.assertEqual(peer.receive().kind, "READ")
            peer.send(frames.CANCEL, 0, b"gone")
            got = peer.finish()
            self.assertEqual((got.end.flags, got.end.text), (frames.END_CANCELLED, "gone"))
            self.assertEqual(seen, ["the client is gone: gone"] * 2)
            peer.send(frames.BODY, LAST, b"late")  # the answer crossed the CANCEL
            peer.start(flags=MORE)
            self.assertEqual(peer.receive().kind, "READ")
            peer.send(frames.CANCEL, 0, b"gone again")
            self.assertEqual(peer.finish().end.text, "gone again")

    def test_uncaught_cancel_is_no_failure(self):
        with InProcess(reading(lambda f: f.read())) as peer:
            peer.start(flags=MORE)
            peer.receive()
            peer.send(frames.CANCEL, 0, b"gone")
            got = peer.finish()
            self.assertEqual((got.end.flags, got.errors), (frames.END_CANCELLED, ""))

    def test_after_the_response_is_complete(self):
        seen = []

        class Body:
            def __init__(self, stream):
                self.stream = stream

            def __iter__(self):
                yield b"xx"

            def close(self):
                try:
                    self.stream.read()
                except OSError as err:
                    seen.append(str(err))

        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "2")])
            return Body(environ["wsgi.input"])

        got = answer(app, flags=MORE)
        self.assertEqual((got.body, got.end.flags), (b"xx", 0))
        self.assertIn("response is complete", seen[0])

    def test_after_the_end(self):
        kept = []

        def app(environ, start_response):
            kept.append(environ["wsgi.input"])
            start_response("200 OK", [])
            return [b"x"]

        with InProcess(app) as peer:
            peer.ask(flags=MORE)
            with self.assertRaisesRegex(OSError, "complete"):
                kept[0].read()
            self.assertEqual(peer.ask(flags=MORE).body, b"x")

    def test_read_while_streaming(self):
        def app(environ, start_response):
            start_response("200 OK", [])
            return iter(environ["wsgi.input"].readline, b"")

        got = answer(app, flags=MORE, body=b"a\nb", feed=[(0, b"\nc\n"), (0, b"d"), (LAST, b"")])
        self.assertEqual(got.body, b"a\nb\nc\nd")

    def test_a_thread_of_the_application_reads(self):
        result = []

        def app(environ, start_response):
            start_response("200 OK", [])
            thread = threading.Thread(target=lambda: result.append(environ["wsgi.input"].read()))
            thread.start()
            yield b"a"
            yield b"b"
            thread.join()
            yield b"c"

        got = answer(app, flags=MORE, feed=[(0, b"x"), (LAST, b"y")])
        self.assertEqual((got.body, result), (b"abc", [b"xy"]))


class Filter(unittest.TestCase):
    def test_two_streams(self):
        def app(environ, start_response):
            body, data = environ["wsgi.input"].read(), environ["fcgi.data"].read()
            start_response("200 OK", [])
            return [body + b"|" + data]

        got = answer(app, body=b"ab", flags=frames.FILTER | MORE, feed=[(LAST, b"c"), (0, b"d"), (LAST, b"e")])
        self.assertEqual(got.body, b"abc|de")
        self.assertEqual([each.flags for each in got.frames if each.kind == "READ"], [0, 4, 4])
        got = answer(app, body=b"ab", flags=frames.FILTER, feed=[(LAST, b"d")])
        self.assertEqual(got.body, b"ab|d")

    def test_absent_elsewhere(self):
        got = answer(lambda e, s: s("200 OK", []) and [repr("fcgi.data" in e).encode()])
        self.assertEqual(got.body, b"False")


class Errors(unittest.TestCase):
    def log(self, use):
        def app(environ, start_response):
            use(environ["wsgi.errors"])
            start_response("200 OK", [])
            return [b"x"]

        got = answer(app)
        self.assertEqual((got.body, got.end.flags), (b"x", 0), got.frames)
        return got

    def test_methods(self):
        def use(errors):
            errors.write("a")
            errors.writelines(["b", "c\n"])
            print("d", 5, file=errors)
            errors.write("e")
            errors.flush()
            errors.flush()
            errors.write("f")

        got = self.log(use)
        self.assertEqual(got.errors, "abc\nd 5\nef")
        self.assertEqual([each.text for each in got.frames if each.kind == "ERRORS"], ["abc\n", "d 5\n", "e", "f"])

    def test_any_unicode(self):
        self.assertEqual(
            self.log(lambda e: e.write("\xe9\u20ac\U0001f600\udc80\0\r")).errors, "\xe9\u20ac\U0001f600\\udc80\0\r"
        )

    def test_long_text(self):
        got = self.log(lambda e: e.write("\u20ac" * 1000000))
        self.assertEqual(got.errors, "\u20ac" * 1000000)
        self.assertTrue(all(len(each.payload) <= frames.MAX_TEXT for each in got.frames))

    def test_text_without_lines_is_not_held_without_a_bound(self):
        def use(errors):
            for _ in range(100):
                errors.write("x" * 1000)

        self.assertGreater(self.log(use).kinds.count("ERRORS"), 2)

    def test_bytes(self):
        got = answer(lambda e, s: e["wsgi.errors"].write(b"x"))
        self.assertIn("wsgi.errors takes str, not bytes: decode it", got.end.text)

    def test_written_while_the_body_is_sent(self):
        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"a"
            environ["wsgi.errors"].write("one\n")
            yield b"b"

        self.assertEqual(answer(app).kinds, ["HEADERS", "DATA", "ERRORS", "DATA", "END"])

    def test_after_the_end_it_goes_to_stderr(self):
        kept = []

        def app(environ, start_response):
            kept.append(environ["wsgi.errors"])
            start_response("200 OK", [])
            return [b"x"]

        log = io.StringIO()
        with InProcess(app) as peer, contextlib.redirect_stderr(log):
            peer.ask()
            kept[0].write("late\n")
            self.assertEqual(peer.ask().errors, "")
        self.assertEqual(log.getvalue(), "late\n")

    def test_many_threads(self):
        def app(environ, start_response):
            def chat(n):
                for _ in range(50):
                    environ["wsgi.errors"].write("thread %d\n" % n)

            threads = [threading.Thread(target=chat, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            start_response("200 OK", [])
            for _ in range(50):
                yield b"x" * 40000
            for thread in threads:
                thread.join()

        got = answer(app)
        self.assertEqual(len(got.body), 50 * 40000)
        self.assertLessEqual(set(got.errors.split("\n")), {"", "thread 0", "thread 1", "thread 2", "thread 3"})


if __name__ == "__main__":
    unittest.main()
