"""The application of the tests that reload, kill, wear out and soak workers.

It keeps a journal of the requests that it has begun and ended, which tells the
tests what ran, where, and how often.
"""

import json
import os
import signal
import time
from urllib.parse import parse_qsl

import release

JOURNAL = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
BLOCK = 64 << 10
leaked = []


def note(mark, request):
    os.write(JOURNAL, f"{mark} {request} {os.getpid()}\n".encode("ascii"))


class Answer:
    """A body of blocks. That it gives its last one, and is closed, is noted."""

    def __init__(self, request, blocks):
        self.request = request
        self.blocks = blocks

    def __iter__(self):
        last = b""
        for block in self.blocks:
            if last:
                yield last
            last = block
        note("E", self.request)  # before: nobody can have the whole answer yet
        yield last

    def close(self):
        note("C", self.request)


def page(request):
    facts = {"id": int(request), "pid": os.getpid(), "code": release.CODE}
    return json.dumps(facts).encode("ascii")


def blocks(size):
    while size > 0:
        yield b"d" * min(size, BLOCK)
        size -= BLOCK


def receive(stream):
    """Read a body to its end and return its length."""
    got = 0
    while True:
        block = stream.read(BLOCK)
        if not block:
            return got
        got += len(block)


def run(environ, start_response):
    """Do what the query says: id=N is the request's number, read=1 read the body,
    leak=N KiB stay allocated, ms=N sleep, die=1 end the worker, down=N answer so
    many bytes."""
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    request = query["id"]
    note("B", request)
    headers = [("Content-Type", "application/octet-stream")]
    if "read" in query:
        headers.append(("X-Got", str(receive(environ["wsgi.input"]))))
    if "leak" in query:
        leaked.append(b"x" * (int(query["leak"]) << 10))
    time.sleep(float(query.get("ms", "0")) / 1000)
    if "die" in query:
        os.kill(os.getpid(), signal.SIGKILL)
    if "down" in query:
        size = int(query["down"])
        body = Answer(request, blocks(size))
    else:
        text = page(request)
        size, body = len(text), Answer(request, [text])
    start_response("200 OK", headers + [("Content-Length", str(size))])
    return body


def health(environ, start_response):
    status = "200 OK" if release.HEALTHY else "500 Not Healthy"
    start_response(status, [("Content-Type", "text/plain")])
    return [b"is it well?\n"]


def app(environ, start_response):
    page_of = {"/run": run, "/health": health}[environ["PATH_INFO"]]
    return page_of(environ, start_response)
