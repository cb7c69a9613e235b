import unittest
from html.parser import HTMLParser

from wsgigate_runner import debug, demo

from .gateway import answer


class Demo(unittest.TestCase):
    def ask(self, **request):
        """One answer, under wsgiref's validator."""
        got = answer(debug.validated(demo.application), **request)
        self.assertEqual((got.end.flags, got.end.text), (0, ""), got.errors)
        return got

    def test_page(self):
        got = self.ask(HTTP_X_EVIL="<script>&\xe9")
        self.assertEqual((got.status, got.header("Content-Type")), ("200 OK", "text/html; charset=utf-8"))
        page = got.body.decode("utf-8")
        self.assertIn("wsgigate serve --fastcgi unix:/run/app.sock mysite:application", page)
        self.assertIn("&lt;script&gt;&amp;\xe9", page)
        self.assertNotIn("<script", page)
        for name in ("REQUEST_METHOD", "wsgi.input", "wsgi.url_scheme"):
            self.assertIn(name, page)

    def test_page_is_well_formed_and_needs_nothing_else(self):
        links = []

        class Parser(HTMLParser):
            def handle_starttag(self, tag, attrs):
                self.open = getattr(self, "open", [])
                links.extend(value for name, value in attrs if name in ("src", "href"))
                if tag != "meta":
                    self.open.append(tag)

            def handle_endtag(self, tag):
                assert self.open.pop() == tag, tag

        parser = Parser()
        parser.feed(self.ask(SCRIPT_NAME="/sub").body.decode("utf-8"))
        self.assertEqual(parser.open, [])
        self.assertEqual(links, ["/sub/stream"])

    def test_head(self):
        got = self.ask(REQUEST_METHOD="HEAD")
        self.assertEqual((got.body, got.warnings), (b"", []))
        self.assertGreater(int(got.header("Content-Length")), 1000)

    def test_stream(self):
        got = self.ask(PATH_INFO="/stream")
        self.assertEqual(got.body, b"".join(b"piece %d of 10\n" % n for n in range(1, 11)))
        self.assertEqual(got.kinds.count("DATA"), 11)  # one for each, and the end

    def test_echo(self):
        got = self.ask(
            PATH_INFO="/echo", REQUEST_METHOD="POST", CONTENT_TYPE="text/x-a", CONTENT_LENGTH="5", body=b"hello"
        )
        self.assertEqual((got.body, got.header("Content-Type")), (b"hello", "text/x-a"))
        got = self.ask(PATH_INFO="/echo", REQUEST_METHOD="POST", flags=1, feed=[(0, b"x" * 100000), (1, b"y")])
        self.assertEqual(got.body, b"x" * 100000 + b"y")

    def test_elsewhere(self):
        self.assertEqual(self.ask(PATH_INFO="/nowhere").status, "404 Not Found")


if __name__ == "__main__":
    unittest.main()
