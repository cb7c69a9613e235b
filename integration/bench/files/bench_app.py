"""The applications of the benchmark, the same for every gateway."""

import json
import os
import sys

BLOCK = b"x" * 65536
BLOCKS = 16
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "file.bin")


def hello(environ, start_response):
    """One block and the headers of a small page."""
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", "14"),
            ("Cache-Control", "no-store"),
            ("Vary", "Cookie"),
            ("X-Frame-Options", "DENY"),
        ],
    )
    return [b"Hello, world!\n"]


def echo(environ, start_response):
    """Parse a JSON body and answer with the same."""
    value = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    body = json.dumps(value, separators=(",", ":")).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]


def blocks(environ, start_response):
    """1 MiB from a generator, without Content-Length."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(BLOCKS):
        yield BLOCK


def file(environ, start_response):
    """A file through wsgi.file_wrapper, with Content-Length as frameworks give it."""
    stream = open(FILE, "rb")  # noqa: SIM115 - the gateway closes it
    size = os.fstat(stream.fileno()).st_size
    start_response(
        "200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
    )
    return environ["wsgi.file_wrapper"](stream, 65536)


def python(environ, start_response):
    """The interpreter, so that the benchmark can see that all sides have the same."""
    body = " ".join(sys.version.split()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


APPS = {"/hello": hello, "/echo": echo, "/blocks": blocks, "/file": file, "/python": python}


def application(environ, start_response):
    return APPS[environ["PATH_INFO"]](environ, start_response)
