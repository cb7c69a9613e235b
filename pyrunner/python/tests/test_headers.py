import random
import unittest

from wsgigate_runner import headers
from wsgigate_runner.headers import render


class Text(str):
    """A str subclass, as templates and translations make them."""


class Accepted(unittest.TestCase):
    def test_block(self):
        block, has_body, length = render("200 OK", [("Content-Type", "text/plain"), ("X", "")])
        self.assertEqual(block, b"200 OK\nContent-Type: text/plain\nX: \n")
        self.assertTrue(has_body)
        self.assertIsNone(length)

    def test_content_length(self):
        for name in ("Content-Length", "content-length", "CONTENT-LENGTH", "cOnTeNt-LeNgTh"):
            self.assertEqual(render("200 OK", [(name, "0012")])[2], 12, name)

    def test_values(self):
        for value in ("tab\there", "\xe9\xff\xa0", " leading", "trailing ", "a" * 50000):
            block = render("200 OK", [("X-A", value)])[0]
            self.assertEqual(block, b"200 OK\nX-A: " + value.encode("latin-1") + b"\n")

    def test_statuses(self):
        for status, has_body in [
            ("100 Continue", False),
            ("199 X", False),
            ("200 ", True),
            ("204 No Content", False),
            ("299 Caf\xe9", True),
            ("304 Not Modified", False),
            ("599 Last", True),
        ]:
            for _ in range(2):  # the second time from the cache
                self.assertEqual(render(status, [])[:2], (status.encode("latin-1") + b"\n", has_body))

    def test_subclasses(self):
        class Fields(list):
            pass

        class Field(tuple):
            __slots__ = ()

        block = render(Text("201 Created"), Fields([Field((Text("X-Sub"), Text("v")))]))[0]
        self.assertEqual(block, b"201 Created\nX-Sub: v\n")
        self.assertEqual(render(Text("201 Created"), [(Text("X-Sub"), Text("v"))])[0], block)

    def test_repeated_fields_keep_their_order(self):
        fields = [("Set-Cookie", "a=1"), ("X", "y"), ("Set-Cookie", "b=2")]
        self.assertEqual(render("200 OK", fields)[0], b"200 OK\nSet-Cookie: a=1\nX: y\nSet-Cookie: b=2\n")


# (status, headers, exception, a part of its message)
REFUSED = [
    (b"200 OK", [], TypeError, "write '200 OK', not b'200 OK'"),
    (200, [], TypeError, "status must be str, not int"),
    (None, [], TypeError, "status must be str"),
    (["200 OK"], [], TypeError, "status must be str"),
    ("banana", [], ValueError, "three digits"),
    ("200", [], ValueError, "three digits"),
    ("200OK", [], ValueError, "three digits"),
    ("20 OK", [], ValueError, "three digits"),
    ("099 Low", [], ValueError, "100 to 599"),
    ("600 High", [], ValueError, "100 to 599"),
    ("\u0662\u0660\u0660 OK", [], ValueError, "three digits"),
    ("\xb2\xb2\xb2 OK", [], ValueError, "three digits"),
    ("", [], ValueError, "three digits"),
    ("200 O\rK", [], ValueError, "control character '\\r' in the status"),
    ("200 O\nK", [], ValueError, "control character '\\n' in the status"),
    ("200 O\0K", [], ValueError, "control character '\\x00' in the status"),
    ("200 \u20ac", [], ValueError, "not latin-1"),
    ("200 OK", (("A", "b"),), TypeError, "must be a list"),
    ("200 OK", {"A": "b"}, TypeError, "list(headers.items())"),
    ("200 OK", None, TypeError, "must be a list"),
    ("200 OK", iter([("A", "b")]), TypeError, "must be a list"),
    ("200 OK", [["A", "b"]], TypeError, "tuple"),
    ("200 OK", ["Ab"], TypeError, "tuple"),
    ("200 OK", [("A",)], TypeError, "tuple"),
    ("200 OK", [("A", "b", "c")], TypeError, "tuple"),
    ("200 OK", [(b"A", "b")], TypeError, "header name b'A' must be str, not bytes"),
    ("200 OK", [("A", b"b")], TypeError, "decode it as latin-1"),
    ("200 OK", [("A", 5)], TypeError, "use str(value)"),
    ("200 OK", [("A", None)], TypeError, "header A must be str, not NoneType"),
    ("200 OK", [([], "b")], TypeError, "must be str, not list"),
    ("200 OK", [("", "b")], ValueError, "header name ''"),
    ("200 OK", [("A B", "b")], ValueError, "header name 'A B'"),
    ("200 OK", [("A:", "b")], ValueError, "no colon"),
    ("200 OK", [("A\n", "b")], ValueError, "header name"),
    ("200 OK", [("\xc4", "b")], ValueError, "header name"),
    ("200 OK", [("A", "b\rc")], ValueError, "control character '\\r' in header A"),
    ("200 OK", [("A", "b\nc: d")], ValueError, "control character '\\n' in header A"),
    ("200 OK", [("A", "b\0")], ValueError, "control character '\\x00' in header A"),
    ("200 OK", [("A", "\x7f")], ValueError, "control character"),
    ("200 OK", [("A", "\x1b[0m")], ValueError, "control character"),
    ("200 OK", [("A", "\u20ac")], ValueError, "not latin-1"),
    ("200 OK", [("A", "\u2028")], ValueError, "not latin-1"),
    ("200 OK", [("Status", "200")], ValueError, "start_response's first argument"),
    ("200 OK", [("sTaTuS", "200")], ValueError, "start_response's first argument"),
    ("200 OK", [("Content-Length", "5"), ("content-length", "5")], ValueError, "twice"),
    ("200 OK", [("Content-Length", "-5")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "+5")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "0x5")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "5, 5")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "\xb2")], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", "\u0665")], ValueError, "not latin-1"),
    ("200 OK", [("Content-Length", "1" * 19)], ValueError, "not a number of bytes"),
    ("200 OK", [("Content-Length", 5)], TypeError, "use str(value)"),
    ("200 OK", [("X", "y" * (129 << 10))], ValueError, "more than 131072"),
] + [
    ("200 OK", [(name, "x")], ValueError, "hop-by-hop")
    for lower in headers.HOP_BY_HOP
    for name in (lower, lower.title(), lower.upper())
]


class Refused(unittest.TestCase):
    def test_table(self):
        render("200 OK", [("A", "b")])  # known names must not hide a fault in their values
        for status, fields, kind, message in REFUSED:
            with self.subTest(status=status, fields=str(fields)[:60]):
                with self.assertRaises(kind) as caught:
                    render(status, fields)
                self.assertIn(message, str(caught.exception))

    def test_caches_are_bounded(self):
        for n in range(headers.MAX_KNOWN + 100):
            render("200 Made up %d" % n, [("X-Made-Up-%d" % n, "v")])
        self.assertLessEqual(len(headers._names), headers.MAX_KNOWN)
        self.assertLessEqual(len(headers._statuses), headers.MAX_KNOWN)


class QuickIsThorough(unittest.TestCase):
    """The quick way and the thorough way agree, whatever comes."""

    NAMES = [
        "A",
        "Content-Type",
        "content-length",
        "Content-Length",
        "Connection",
        "Status",
        "B C",
        "",
        b"A",
        5,
        Text("T"),
    ]
    VALUES = ["", "x", "5", "\t", "\xa0", "\xe9", "\u20ac", "a\nb", "\x7f", b"x", 5, None, Text("s")]
    STATUSES = ["200 OK", "204 No Content", "banana", "200", b"200 OK", Text("404 Not Found")]

    def outcome(self, call, *args):
        try:
            return call(*args)
        except Exception as err:
            return type(err), str(err)

    def test_reason_alone(self):
        for status, fields in (("banana", []), ("200 OK", [("A", 5)]), ("200 OK", [("\u20ac", "x")]), ("200 OK", [5])):
            with self.assertRaises((TypeError, ValueError)) as caught:
                render(status, fields)
            self.assertIsNone(caught.exception.__context__)

    def test_random(self):
        chance = random.Random(3333)
        for _ in range(4000):
            fields = [
                (chance.choice(self.NAMES), chance.choice(self.VALUES))
                if chance.random() < 0.3
                else ("A", "b%d" % chance.randrange(9))
                for _ in range(chance.randrange(4))
            ]
            status = chance.choice(self.STATUSES)
            self.assertEqual(self.outcome(render, status, fields), self.outcome(headers._render, status, fields))


if __name__ == "__main__":
    unittest.main()
