"""One page for each misbehaviour that the fault tests need of an application."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from urllib.parse import parse_qs


def page(start_response, value):
    body = json.dumps(value).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def ok(environ, start_response):
    return page(start_response, {"pid": os.getpid()})


def count(environ, start_response):
    """Leave a trace of the call, so that a test can see that there was one."""
    environ["wsgi.input"].read()
    with open("called", "a") as file:
        file.write(environ["QUERY_STRING"] + "\n")
    return page(start_response, {})


def raising(environ, start_response):
    raise ValueError("secret <script>alert(1)</script>")


def invalid(environ, start_response):
    start_response("200 OK", [])  # wsgiref.validate wants a Content-Type
    return [b"text"]


def sleep(environ, start_response):
    """Sleep, whatever signals come; time.sleep goes on after a handler."""
    print("sleeping", flush=True)
    time.sleep(float(environ["QUERY_STRING"] or 3600))
    return page(start_response, {"slept": True})


def holds_gil(environ, start_response):
    """Wait in C for a mutex of its own, which no signal interrupts."""
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


def ignores_term(environ, start_response):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(3600)


def segfault(environ, start_response):
    ctypes.string_at(0)


def leave(environ, start_response):
    os._exit(int(environ["QUERY_STRING"]))


def cut(environ, start_response):
    """Die, in the way that the query says, in the middle of a body."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun\n"
    time.sleep(0.2)  # the first block is on its way
    if environ["QUERY_STRING"] == "raise":
        raise ValueError("in the middle")
    os.kill(os.getpid(), signal.SIGKILL)


def prints(environ, start_response):
    print("printed\x1b[31m red", flush=True)
    os.write(1, b"written to 1\n")
    os.write(2, b"written to 2\n")
    sys.stderr.write("said on stderr\n")
    environ["wsgi.errors"].write("told wsgi.errors \x1b[0m\rover\n")
    return page(start_response, {"pid": os.getpid()})


def close_fds(environ, start_response):
    first, last = map(int, environ["QUERY_STRING"].split("-"))
    os.closerange(first, last)
    return page(start_response, {"pid": os.getpid()})


class Endless:
    """Blocks until nobody wants more; then it tells that it was closed."""

    def __init__(self, environ):
        self.pause = float(parse_qs(environ["QUERY_STRING"]).get("pause", ["0"])[0])
        self.size = int(parse_qs(environ["QUERY_STRING"]).get("size", ["65536"])[0])

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.pause)
        return b"x" * self.size

    def close(self):
        print("closed by", os.getpid(), flush=True)


def endless(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Endless(environ)


def blocks(environ, start_response):
    """As many KiB as the query says, in one piece or in blocks of 64 KiB."""
    rest = int(environ["QUERY_STRING"]) << 10
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(rest))])
    while rest:
        n = min(rest, 65536)
        yield b"y" * n
        rest -= n


def environment(environ, start_response):
    return page(start_response, {"environ": dict(os.environ), "argv": sys.argv})


LIST_DESCRIPTORS = """
import json, os
found = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        found[fd] = os.readlink("/proc/self/fd/" + fd)
    except OSError:
        pass  # the listing's own descriptor is gone
found = {fd: to for fd, to in found.items() if "/proc/" not in to}
"""


def descriptors(environ, start_response):
    """What is open in the worker, or in a program that it starts as carelessly as it can."""
    if environ["QUERY_STRING"] == "child":
        code = LIST_DESCRIPTORS + "print(json.dumps(found))"
        out = subprocess.check_output([sys.executable, "-c", code], close_fds=False)
        return page(start_response, json.loads(out))
    scope = {}
    exec(LIST_DESCRIPTORS, scope)
    return page(start_response, scope["found"])


def seen(environ, start_response):
    return page(start_response, {k: v for k, v in environ.items() if isinstance(v, str)})


PAGES = {
    "/ok": ok,
    "/count": count,
    "/raise": raising,
    "/invalid": invalid,
    "/sleep": sleep,
    "/gil": holds_gil,
    "/term": ignores_term,
    "/segfault": segfault,
    "/leave": leave,
    "/cut": cut,
    "/prints": prints,
    "/close": close_fds,
    "/endless": endless,
    "/blocks": blocks,
    "/environment": environment,
    "/descriptors": descriptors,
}


def app(environ, start_response):
    return PAGES.get(environ["PATH_INFO"], seen)(environ, start_response)
