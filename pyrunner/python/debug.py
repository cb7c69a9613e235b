"""--debug: the traceback in the browser, and wsgiref's validator around the application."""

from __future__ import annotations

from html import escape
from wsgiref.validate import validator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .slot import Application

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>%s</title></head>
<body style="font-family: sans-serif; margin: 2em"><h1>500 Internal Server Error</h1>
<p>%s</p>
<pre style="background: #f4f4f4; padding: 1em; overflow: auto">%s</pre>
<p>This page is shown because wsgigate runs with --debug.</p>
</body></html>
"""


def validated(app: Application) -> Application:
    """Return the application with wsgiref.validate around it."""
    wrapped: Application = validator(app)
    return wrapped


def error_page(reason: str, trace: str) -> bytes:
    """Return an HTML page with an exception's traceback."""
    title = escape(reason)
    page = _PAGE % (title, title, escape(trace))
    return page.encode("utf-8", "backslashreplace")
