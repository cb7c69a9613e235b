"""The application of the acceptance tests: large bodies, and what the request looked like."""

import glob
import hashlib
import json
import os
import time
from urllib.parse import parse_qs

BLOCK = 64 << 10


def answer(start_response, value):
    body = json.dumps(value, sort_keys=True).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def digest(environ, start_response):
    """The body's length and digest, read in blocks."""
    sha, length = hashlib.sha256(), 0
    read = environ["wsgi.input"].read
    block = read(BLOCK)
    while block:
        sha.update(block)
        length += len(block)
        block = read(BLOCK)
    return answer(start_response, {"length": length, "sha256": sha.hexdigest()})


def download(environ, start_response):
    """As many blocks of 64 KiB as the query says; each begins with its number."""
    blocks = int(parse_qs(environ["QUERY_STRING"])["blocks"][0])
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    rest = b"." * (BLOCK - 8)
    return (b"%08d" % i + rest for i in range(blocks))


def seen(environ, start_response):
    """The environ: values as they are if JSON has them, else their type."""
    return answer(
        start_response,
        {k: v if isinstance(v, (str, bool, int)) else type(v).__name__ for k, v in environ.items()},
    )


def bytes_of(environ, start_response):
    """The same bytes whoever asks, with every value that a byte can have."""
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("X-Fixed", "caf\xe9")])
    number = int(environ["QUERY_STRING"] or 0)
    return [b"%08d" % number, bytes(range(256)) * 100, environ["wsgi.input"].read()]


def meet(environ, start_response):
    """Answer once three requests are here at the same time, each with its own query."""
    open("met." + environ["QUERY_STRING"], "w").close()
    deadline = time.monotonic() + 20
    while len(glob.glob("met.*")) < 3:
        if time.monotonic() > deadline:
            raise TimeoutError("the others did not come")
        time.sleep(0.01)
    return answer(start_response, {"met": True})


def unread(environ, start_response):
    return answer(start_response, {"unread": True})


def pid(environ, start_response):
    return answer(start_response, {"pid": os.getpid()})


PAGES = {
    "/digest": digest,
    "/download": download,
    "/seen": seen,
    "/bytes": bytes_of,
    "/meet": meet,
    "/unread": unread,
    "/pid": pid,
}


def app(environ, start_response):
    return PAGES[environ["PATH_INFO"]](environ, start_response)
