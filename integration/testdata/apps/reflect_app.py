"""The reflect application: it answers what it saw, as JSON.

It is the Python twin of environtest.App (environ/environtest/reflect.go): the conformance
table runs against both, so a page of one is a page of the other, byte for byte.

CPython's wsgiref.validate stands around it, and its warnings are errors, so that every
hookup that passes the table also passes the validator. Only /file is outside of it: the
validator wraps the iterable, and a server could no longer tell that it is a file.
"""

import hashlib
import json
import tempfile
import warnings
from wsgiref.validate import WSGIWarning, validator

warnings.simplefilter("error", WSGIWarning)

PAGE = b"one page of text\n"
UNREAD = b"body not read\n"
SECRET = "details that a client must not see"
BIG_BLOCKS = 32
BLOCK_REPEAT = 8192
FILE_LINES = 40000
READ_SIZE = 65536
MUST_BE_BOOL = ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")


class Failure(Exception):
    """What /fail raises."""


def big_block(i):
    """The i-th block of /big: 64 KiB that tell their place."""
    return (b"%08d" % i) * BLOCK_REPEAT


def whole(start_response, status, body, *fields):
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response(status, headers + list(fields))
    return [body] if body else []


def page(environ, start_response):
    return whole(start_response, "200 OK", PAGE)


def empty(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return []


def reason(environ, start_response):
    return whole(start_response, "200 Very Fine", PAGE)


def nobody_204(environ, start_response):
    start_response("204 No Content", [("X-Kind", "none")])
    return []


def nobody_304(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"abc"')])
    return []


def redirect(environ, start_response):
    return whole(start_response, "302 Found", PAGE, ("Location", "/elsewhere?x=1"))


def headers_dup(environ, start_response):
    return whole(
        start_response,
        "200 OK",
        PAGE,
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2; Path=/"),
    )


def headers_latin1(environ, start_response):
    return whole(start_response, "200 OK", PAGE, ("X-Latin", "caf\xe9"))


def headers_many(environ, start_response):
    fields = [("X-Field-%d" % i, "value %d" % i) for i in range(30)]
    return whole(start_response, "200 OK", PAGE, *fields)


def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return (b"%d\n" % i for i in range(5))


def write(environ, start_response):
    send = start_response("200 OK", [("Content-Type", "text/plain")])
    send(b"one\n")
    send(b"two\n")
    return [b"three\n"]


def big(environ, start_response):
    size = BIG_BLOCKS * BLOCK_REPEAT * 8
    headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
    start_response("200 OK", headers)
    return (big_block(i) for i in range(BIG_BLOCKS))


def bigstream(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return (big_block(i) for i in range(BIG_BLOCKS))


def unread(environ, start_response):
    return whole(start_response, "200 OK", UNREAD)


def partial(environ, start_response):
    return whole(start_response, "200 OK", environ["wsgi.input"].read(10))


def errors(environ, start_response):
    environ["wsgi.errors"].write("a line for wsgi.errors\n")
    return whole(start_response, "200 OK", PAGE)


def fail(environ, start_response):
    raise Failure(SECRET)


def faults(environ):
    """Duties of PEP 3333 that only the application can see."""
    found = []
    if type(environ) is not dict:
        found.append("environ is a %s, not a dict" % type(environ).__name__)
    for name, value in environ.items():
        if type(name) is not str:
            found.append("the name %r is not a str" % (name,))
        elif "." not in name and type(value) is not str:
            found.append("%s is a %s, not a str" % (name, type(value).__name__))
    if type(environ["wsgi.version"]) is not tuple:
        found.append("wsgi.version is not a tuple")
    for name in MUST_BE_BOOL:
        if environ[name] not in (True, False):
            found.append("%s is %r" % (name, environ[name]))
    if not callable(environ.get("wsgi.file_wrapper")):
        found.append("wsgi.file_wrapper is missing")
    return found


def digest(stream):
    """Read all of wsgi.input; past its end it must go on giving b''."""
    sha, length = hashlib.sha256(), 0
    try:
        block = stream.read(READ_SIZE)
        while block:
            sha.update(block)
            length += len(block)
            block = stream.read(READ_SIZE)
        if stream.read(1) or stream.readline():
            raise OSError("wsgi.input has bytes after its end")
    except OSError as err:
        return {"length": length, "sha256": sha.hexdigest(), "error": str(err) or repr(err)}
    return {"length": length, "sha256": sha.hexdigest(), "error": ""}


def reflect(environ, start_response):
    seen = {
        "environ": {k: v for k, v in environ.items() if type(v) is str and "." not in k},
        "wsgi": {
            "version": list(environ["wsgi.version"]),
            "url_scheme": environ["wsgi.url_scheme"],
            "run_once": bool(environ["wsgi.run_once"]),
            "input_terminated": bool(environ.get("wsgi.input_terminated")),
        },
        "faults": faults(environ),
        "body": digest(environ["wsgi.input"]),
    }
    body = json.dumps(seen).encode("ascii")
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


def status(environ, start_response):
    code = environ["PATH_INFO"].rpartition("/")[2]
    fields = [("WWW-Authenticate", 'Basic realm="test"')] if code == "401" else []
    return whole(start_response, code + " As Asked", b"status %s\n" % code.encode(), *fields)


PAGES = {
    "/page": page,
    "/empty": empty,
    "/reason": reason,
    "/nobody/204": nobody_204,
    "/nobody/304": nobody_304,
    "/redirect": redirect,
    "/headers/dup": headers_dup,
    "/headers/latin1": headers_latin1,
    "/headers/many": headers_many,
    "/stream": stream,
    "/write": write,
    "/big": big,
    "/bigstream": bigstream,
    "/unread": unread,
    "/partial": partial,
    "/errors": errors,
    "/fail": fail,
}


def dispatch(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/status/"):
        return status(environ, start_response)
    return PAGES.get(path, reflect)(environ, start_response)


def send_file(environ, start_response):
    # The server closes the file (PEP 3333, "Optional Platform-Specific File Handling").
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(b"".join(b"%07d\n" % i for i in range(FILE_LINES)))
    size = file.tell()
    file.seek(0)
    headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
    start_response("200 OK", headers)
    return environ["wsgi.file_wrapper"](file, 8192)


validated = validator(dispatch)


def application(environ, start_response):
    app = send_file if environ["PATH_INFO"] == "/file" else validated
    return app(environ, start_response)
