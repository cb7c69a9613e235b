"""The built-in application, for a server that was given none: shows that all is well."""

from __future__ import annotations

import sys
from html import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>wsgigate works</title>
<style>
body { font-family: sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
code, td { font-family: monospace }
pre { background: #f4f4f4; padding: 1em; overflow: auto }
table { border-collapse: collapse; width: 100%% }
td { border-top: 1px solid #ddd; padding: .2em .5em; vertical-align: top; overflow-wrap: anywhere }
</style></head>
<body>
<h1>wsgigate works</h1>
<p>This is its built-in demo application, run by %(python)s. Next, serve your own, for example behind nginx:</p>
<pre>wsgigate serve --fastcgi unix:/run/app.sock mysite:application</pre>
<p>Also here: <a href="%(mount)s/stream">/stream</a> sends a body piece by piece, and <code>/echo</code> returns what
is posted to it.</p>
<h2>The environ of this request</h2>
<table>
%(rows)s
</table>
</body></html>
"""

_PIECES = 10
_BLOCK = 65536


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the demo page, /stream or /echo."""
    path = environ.get("PATH_INFO", "")
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return _stream()
    if path == "/echo":
        return _echo(environ, start_response)
    if path not in ("", "/"):
        status, kind, body = "404 Not Found", "text/plain", b"Not found: try /\n"
    else:
        status, kind, body = "200 OK", "text/html", _page(environ)
    start_response(status, [("Content-Type", kind + "; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _stream() -> Iterator[bytes]:
    for n in range(1, _PIECES + 1):
        yield b"piece %d of %d\n" % (n, _PIECES)


def _echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    headers = [("Content-Type", environ.get("CONTENT_TYPE") or "application/octet-stream")]
    if environ.get("CONTENT_LENGTH"):
        headers.append(("Content-Length", environ["CONTENT_LENGTH"]))
    start_response("200 OK", headers)
    return iter(lambda: environ["wsgi.input"].read(_BLOCK), b"")


def _page(environ: dict[str, Any]) -> bytes:
    rows = "\n".join(
        "<tr><td>%s</td><td>%s</td></tr>" % (escape(name), escape(_shown(value)))
        for name, value in sorted(environ.items())
    )
    python = "%s %s" % (sys.implementation.name, sys.version.split()[0])
    mount = escape(environ.get("SCRIPT_NAME", ""))
    return (_PAGE % {"python": python, "mount": mount, "rows": rows}).encode("utf-8", "backslashreplace")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
