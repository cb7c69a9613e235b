"""The golden frames of PROTOCOL.md: ``python -m tests.golden`` writes them anew.

golden.json lists each file with the frame's fields, for the tests of the Go half.
"""

import json
import os
import struct

from . import GOLDEN

ENVIRON = [
    ["REQUEST_METHOD", "POST"],
    ["SCRIPT_NAME", "/sub"],
    ["PATH_INFO", "/caf\xc3\xa9"],
    ["QUERY_STRING", "a=1&b="],
    ["CONTENT_LENGTH", "5"],
    ["HTTP_X_LONG", "x" * 300],
    ["HTTP_X_LATIN", "\x80\xff"],
    ["wsgi.url_scheme", "https"],
    ["wsgi.run_once", False],
    ["wsgi.version", [1, 0]],
    ["wsgi.multithread", False],
    ["wsgi.multiprocess", True],
    ["wsgi.input_terminated", True],
]

# What changes from ENVIRON, and the removals that end the list.
CHANGES = [
    ["PATH_INFO", "/other"],
    ["HTTP_X_LATIN", "\xe9"],
    ["HTTP_COOKIE", "secret"],
]
REMOVES = [["CONTENT_LENGTH", None], ["HTTP_X_LONG", None]]

INIT = [
    ["app", "mysite:application"],
    ["slots", [5, 7]],
    ["requests", [6, 8]],
    ["chdir", "/srv/b\xfccher"],
    ["pythonpath", ["/srv/lib"]],
    ["debug", False],
    ["dump_fd", 4],
    ["dump_signal", 40],
    ["raise_signal", 41],
    ["watch", True],
]


def marshal_key(name):
    return b"Z" + bytes([len(name)]) + name.encode()


def marshal_text(text):
    data = text.encode("utf-8")
    return b"u" + struct.pack("<I", len(data)) + data


def marshal_latin1(text):
    if not text.isascii():
        return marshal_text(text)
    if len(text) < 256:
        return b"z" + bytes([len(text)]) + text.encode()
    return b"a" + struct.pack("<I", len(text)) + text.encode()


def marshal_int(number):
    return b"i" + struct.pack("<i", number)


def marshal_environ(pairs):
    """An environ; of its values wsgi.url_scheme is interned, as keys are."""
    out = b"{"
    for name, value in pairs:
        out += marshal_key(name)
        if isinstance(value, bool):
            out += b"T" if value else b"F"
        elif value is None:
            out += b"N"
        elif isinstance(value, (list, tuple)):
            out += b")" + bytes([len(value)]) + b"".join(map(marshal_int, value))
        elif name == "wsgi.url_scheme":
            out += marshal_key(value)
        else:
            out += marshal_latin1(value)
    return out + b"0"


def marshal_init(pairs):
    """INIT's dictionary: texts are any Unicode."""
    out = b"{"
    for name, value in pairs:
        out += marshal_key(name) + _marshal_setting(value)
    return out + b"0"


def _marshal_setting(value):
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        return marshal_int(value)
    if isinstance(value, list):
        return b"[" + struct.pack("<I", len(value)) + b"".join(map(_marshal_setting, value))
    return marshal_text(value)


def _entry(name, sender, kind, flags, request, payload, **fields):
    head = struct.pack("<BBHII", kind, flags, 0, 4 + len(payload), request)
    about = {"name": name, "file": name + ".bin", "from": sender, "type": kind, "flags": flags, "request": request}
    about["fields"] = fields
    return about, head + payload


def entries():
    """Every golden frame: what golden.json says of it, and its bytes."""
    env = marshal_environ(ENVIRON)
    more = struct.pack("<I", len(env)) + env
    head = "200 OK\nContent-Type: text/plain\nX-Latin: \xe9\n"
    yield _entry("init", "gateway", 0x01, 0, 0, marshal_init(INIT), config=INIT)
    yield _entry("request", "gateway", 0x02, 0, 7, more + b"a\x00\xffbc", environ=ENVIRON, body=b"a\x00\xffbc".hex())
    yield _entry("request-more", "gateway", 0x02, 1, 8, more + b"ab", environ=ENVIRON, body=b"ab".hex())
    yield _entry("request-filter", "gateway", 0x02, 3, 9, more, environ=ENVIRON, body="")
    for name, flags, sent in (
        ("request-same", 4, []),
        ("request-changes", 4, CHANGES),
        ("request-removes", 12, CHANGES + REMOVES),
        ("request-changes-more", 5, CHANGES),
    ):
        env = marshal_environ(sent)
        yield _entry(name, "gateway", 0x02, flags, 10, struct.pack("<I", len(env)) + env, environ=sent, body="")
    yield _entry("body", "gateway", 0x03, 0, 8, b"cd", data=b"cd".hex())
    yield _entry("body-last", "gateway", 0x03, 1, 8, b"e", data=b"e".hex())
    yield _entry("body-broken", "gateway", 0x03, 2, 8, b"body ended early", text="body ended early")
    yield _entry("body-data", "gateway", 0x03, 5, 9, b"data", data=b"data".hex())
    yield _entry("cancel", "gateway", 0x04, 0, 8, b"client closed the connection", text="client closed the connection")
    hello = struct.pack("<HI", 1, 4242) + b"CPython 3.11.2"
    yield _entry("hello", "worker", 0x81, 0, 0, hello, version=1, pid=4242, interpreter="CPython 3.11.2")
    yield _entry("ready", "worker", 0x82, 0, 0, b"flask.app.Flask", text="flask.app.Flask")
    failed = "there is no module 'mysit'\nTraceback ...\n"
    yield _entry("failed", "worker", 0x83, 0, 0, failed.encode(), text=failed)
    yield _entry("headers", "worker", 0x84, 0, 7, head.encode("latin-1"), block=head)
    yield _entry("headers-last", "worker", 0x84, 1, 7, b"304 Not Modified\n", block="304 Not Modified\n")
    yield _entry("data", "worker", 0x85, 0, 7, b"\x00hello\xff", data=b"\x00hello\xff".hex())
    yield _entry("data-last", "worker", 0x85, 1, 7, b"!", data=b"!".hex())
    yield _entry("data-last-empty", "worker", 0x85, 1, 7, b"", data="")
    yield _entry("file", "worker", 0x86, 1, 7, struct.pack("<QQ", 10, 1 << 33), offset=10, count=1 << 33)
    yield _entry("errors", "worker", 0x87, 0, 7, "na\xefve\n".encode(), text="na\xefve\n")
    yield _entry("read", "worker", 0x88, 0, 8, struct.pack("<I", 262144), size=262144)
    yield _entry("read-data", "worker", 0x88, 4, 9, struct.pack("<I", 1), size=1)
    yield _entry("end", "worker", 0x89, 0, 7, b"", text="")
    reason = "ZeroDivisionError: division by zero at app.py:12"
    yield _entry("end-failed", "worker", 0x89, 1, 7, reason.encode(), text=reason)
    yield _entry(
        "end-cancelled", "worker", 0x89, 2, 8, b"client closed the connection", text="client closed the connection"
    )
    yield _entry("warn", "worker", 0x8A, 0, 7, b"dropped", text="dropped")
    files = ["/srv/mysite.py", "/srv/b\xfccher/views.py"]
    yield _entry("imported", "worker", 0x8B, 0, 0, "\0".join(files).encode(), files=files)


def index():
    return json.dumps({"version": 1, "frames": [about for about, _ in entries()]}, indent=1, ensure_ascii=True) + "\n"


def main():
    os.makedirs(GOLDEN, exist_ok=True)
    for about, data in entries():
        with open(os.path.join(GOLDEN, about["file"]), "wb") as out:
            out.write(data)
    with open(os.path.join(GOLDEN, "golden.json"), "w", encoding="ascii") as out:
        out.write(index())


if __name__ == "__main__":
    main()
