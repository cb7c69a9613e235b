"""Applications that are none, and some that fail."""

import sys

number = 5


def one(environ):
    return []


def make():
    return raises


def broken():
    raise LookupError("no database")


def nothing():
    return None


async def asgi(scope, receive, send):
    pass


def raises(environ, start_response):
    raise ValueError("out of cheese")


def late(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "9")])
    yield b"half"
    raise ValueError("out of cheese")


def none(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])


def text(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["text"]


def talks(environ, start_response):
    print("on stdout")
    print("on stderr", file=sys.stderr)
    environ["wsgi.errors"].write("in wsgi.errors\n")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"answer\n"]


def unavailable(environ, start_response):
    start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
    return [b"later\n"]


def sleeps(environ, start_response):
    import time

    print("asleep", flush=True)
    time.sleep(60)
