"""wsgi.file_wrapper."""

import gzip
import io
import os
import tempfile
import unittest

from wsgigate_runner import frames
from wsgigate_runner.files import FileWrapper

from .gateway import InProcess, answer

CONTENT = bytes(range(256)) * 1000


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "file")
        with open(self.path, "wb") as out:
            out.write(CONTENT)

    def serve(self, opened, headers=(), **request):
        """One answer with what opened() returns in the wrapper; the file is closed."""
        closed = []

        def app(environ, start_response):
            file = opened()
            self.addCleanup(file.close)
            close = file.close
            file.close = lambda: (closed.append(True), close())
            start_response("200 OK", list(headers))
            return environ["wsgi.file_wrapper"](file)

        got = answer(app, **request)
        self.assertEqual(len(closed), 1, got.frames)
        return got

    def good(self, got, body):
        self.assertEqual((got.body, got.end.flags, got.warnings), (body, 0, []), got.kinds)
        self.assertTrue(got.last)

    def test_real_file_is_passed(self):
        got = self.serve(lambda: open(self.path, "rb"))
        self.good(got, CONTENT)
        self.assertEqual(got.kinds, ["HEADERS", "FILE", "END"])
        self.assertEqual(got.headers, [("Content-Length", str(len(CONTENT)))])

    def test_unbuffered_and_writable_files(self):
        for opened in (lambda: open(self.path, "rb", 0), lambda: open(self.path, "r+b")):
            self.assertIn("FILE", self.serve(opened).kinds)

    def test_temporary_files(self):
        def opened(make):
            file = make()
            file.write(b"0123456789")
            file.seek(4)
            return file

        for make in (tempfile.TemporaryFile, tempfile.NamedTemporaryFile):
            got = self.serve(lambda make=make: opened(make))
            self.good(got, b"456789")
            self.assertIn("FILE", got.kinds)

    def test_starts_at_the_current_position(self):
        def opened():
            file = open(self.path, "rb")
            file.read(10)
            return file

        got = self.serve(opened)
        self.good(got, CONTENT[10:])
        self.assertEqual(got.header("Content-Length"), str(len(CONTENT) - 10))

    def test_unflushed_writes_are_seen(self):
        def opened():
            file = open(self.path, "r+b")
            file.write(b"XYZ")
            return file

        self.good(self.serve(opened), CONTENT[3:])

        def rewound():
            file = tempfile.TemporaryFile()
            file.write(b"hello")
            file.seek(0)
            file.write(b"J")
            return file

        self.good(self.serve(rewound), b"ello")

    def test_obeys_content_length(self):
        got = self.serve(lambda: open(self.path, "rb"), [("Content-Length", "100")])
        self.good(got, CONTENT[:100])
        self.assertEqual(got.headers, [("Content-Length", "100")])

    def test_shorter_than_content_length(self):
        got = self.serve(lambda: open(self.path, "rb"), [("Content-Length", "300000")])
        self.assertEqual(got.end.flags, frames.END_FAILED)
        self.assertIn("256000 bytes but Content-Length says 300000", got.end.text)
        self.assertEqual((got.body, got.last), (CONTENT, False))

    def test_empty_rest(self):
        def opened():
            file = open(self.path, "rb")
            file.seek(0, os.SEEK_END)
            return file

        got = self.serve(opened)
        self.good(got, b"")
        self.assertEqual((got.kinds, got.headers), (["HEADERS", "END"], [("Content-Length", "0")]))

    def test_position_behind_the_end(self):
        def opened():
            file = open(self.path, "rb")
            file.seek(10**9)
            return file

        self.good(self.serve(opened), b"")

    def test_head_and_statuses_without_body(self):
        got = self.serve(lambda: open(self.path, "rb"), REQUEST_METHOD="HEAD")
        self.good(got, b"")
        self.assertEqual((got.kinds, got.headers), (["HEADERS", "END"], [("Content-Length", "256000")]))

    def test_after_write(self):
        def app(environ, start_response):
            start_response("200 OK", [])(b"before ")
            return environ["wsgi.file_wrapper"](open(self.path, "rb"))

        got = answer(app)
        self.good(got, b"before " + CONTENT)
        self.assertEqual((got.kinds, got.headers), (["HEADERS", "DATA", "FILE", "END"], []))

    def test_without_start_response(self):
        got = answer(lambda e, s: e["wsgi.file_wrapper"](open(self.path, "rb")))
        self.assertIn("start_response() was not called", got.end.text)

    def test_file_likes_are_iterated(self):
        with gzip.open(self.path + ".gz", "wb") as out:
            out.write(CONTENT)
        for opened in (
            lambda: gzip.open(self.path + ".gz"),
            lambda: io.BufferedReader(gzip.open(self.path + ".gz")),
        ):
            got = self.serve(opened)
            self.assertEqual((got.body, got.end.flags), (CONTENT, 0))
            self.assertNotIn("FILE", got.kinds)

    def test_pipe_is_iterated(self):
        def opened():
            read, write = os.pipe()
            os.write(write, b"piped")
            os.close(write)
            return open(read, "rb")

        self.assertEqual(self.serve(opened).body, b"piped")

    def test_text_file_fails_with_the_reason(self):
        got = answer(lambda e, s: s("200 OK", []) and e["wsgi.file_wrapper"](open(self.path, encoding="latin-1")))
        self.assertIn("must be bytes, not str", got.end.text)

    def test_read_is_enough(self):
        class Reader:
            def __init__(self):
                self.sizes = []

            def read(self, size):
                self.sizes.append(size)
                return b"x" * size if len(self.sizes) < 3 else b""

        reader = Reader()
        got = answer(lambda e, s: s("200 OK", []) and e["wsgi.file_wrapper"](reader, 5))
        self.assertEqual((got.body, reader.sizes), (b"x" * 10, [5, 5, 5]))

    def test_closed_file(self):
        def app(environ, start_response):
            file = open(self.path, "rb")
            file.close()
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](file)

        self.assertIn("closed file", answer(app).end.text)

    def test_the_next_request_is_taken_while_the_gateway_has_the_file(self):
        def app(environ, start_response):
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](open(self.path, "rb"))

        with InProcess(app) as peer:
            for _ in range(3):
                self.good(peer.ask(), CONTENT)


class Wrapper(unittest.TestCase):
    def test_like_wsgirefs(self):
        file = io.BytesIO(b"0123456789")
        wrapper = FileWrapper(file, 4)
        self.assertEqual(list(wrapper), [b"0123", b"4567", b"89"])
        wrapper.close()
        self.assertTrue(file.closed)
        self.assertFalse(hasattr(FileWrapper(object()), "close"))


if __name__ == "__main__":
    unittest.main()
