"""What PEP 3333 and RFC 9110 ask of a status and of header fields.

``render`` has two ways to the same result: a quick one that accepts what nearly all
applications send, and a thorough one that looks at everything and explains.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Tuple

    Rendered = Tuple[bytes, bool, Optional[int]]

HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

MAX_BLOCK = 128 << 10  # bytes of a whole header: no web server takes as much, and the gateway holds it in memory
MAX_LENGTH_DIGITS = 18  # so that no sum of lengths overflows 64 bits in the gateway
MAX_KNOWN = 1024  # entries of each cache: an application that makes up names must not fill the memory

# Known to be good: a status and whether its response may have a body; a field name and what begins its line.
_statuses: dict[str, bool] = {}
_names: dict[str, str] = {}
_LENGTH = {name: "\n" + name + ": " for name in ("Content-Length", "content-length", "Content-length")}


class _Last:
    """What was rendered last: many applications send the same fields again and again."""

    same: tuple[object, object, Rendered] = (None, None, (b"", False, None))


def render(status: str, headers: list[tuple[str, str]]) -> Rendered:
    """Check a status and header fields, and return them as HEADERS carries them,
    whether the status allows a body, and the Content-Length or None.

    Raises TypeError or ValueError with the rule that is broken and the mend.
    """
    last = _Last.same
    if last[1] == headers and last[0] == status:
        return last[2]
    rendered = _rendered(status, headers)
    if type(headers) is list:
        _Last.same = status, headers[:], rendered
    return rendered


def _rendered(status: str, headers: list[tuple[str, str]]) -> Rendered:
    try:
        has_body = _statuses[status]
        if type(headers) is not list:
            return _render(status, headers)
        length = None
        parts = [status]
        add = parts.append
        for field in headers:
            if type(field) is not tuple:
                return _render(status, headers)
            name, value = field
            begin = _names.get(name)
            if begin is None:
                begin = _LENGTH.get(name)
                if begin is None or length is not None:
                    return _render(status, headers)
                length = _length(value)
            if not value.isprintable():  # control characters, but also a tab or a no-break space
                return _render(status, headers)
            add(begin)
            add(value)
        add("\n")
        block = "".join(parts).encode("latin-1")
        if len(block) > MAX_BLOCK:
            return _render(status, headers)
        return block, has_body, length
    except (AttributeError, LookupError, TypeError, ValueError):
        pass  # not _render: what it raises would carry this one into the application's traceback
    return _render(status, headers)


def _render(status: str, headers: list[tuple[str, str]]) -> Rendered:
    has_body = _check_status(status)
    if not isinstance(headers, list):
        raise TypeError(
            "headers must be a list of (name, value) tuples, not "
            + _a(headers)
            + ": pass list(headers.items()) or the like (PEP 3333)"
        )
    length = None
    parts = [status]
    for field in headers:
        name, value = _check_field(field)
        if name.lower() == "content-length":
            if length is not None:
                raise ValueError("Content-Length is given twice: give it once (RFC 9110, section 8.6)")
            length = _length(value)
        parts += "\n", name, ": ", value
    parts.append("\n")
    block = "".join(parts).encode("latin-1")
    if len(block) > MAX_BLOCK:
        raise ValueError(
            "the header has %d bytes in all, more than %d: is a cookie or a Location too long?"
            % (len(block), MAX_BLOCK)
        )
    return block, has_body, length


def _check_status(status: str) -> bool:
    if not isinstance(status, str):
        raise TypeError("status must be str, not " + _a(status) + ": write '200 OK', not b'200 OK' or 200 (PEP 3333)")
    code = status[:3]
    if not (code.isascii() and code.isdigit() and status[3:4] == " " and 100 <= int(code) <= 599):
        raise ValueError(
            "status %.60r is not three digits from 100 to 599, a space and a reason: write '200 OK' (PEP 3333)" % status
        )
    _check_text("the status", status)
    has_body = int(code) >= 200 and code not in ("204", "304")
    if len(_statuses) < MAX_KNOWN:
        _statuses[str(status)] = has_body
    return has_body


def _check_field(field: object) -> tuple[str, str]:
    if not isinstance(field, tuple) or len(field) != 2:
        raise TypeError("a header must be a (name, value) tuple, not %.80r (PEP 3333)" % (field,))
    name, value = field
    if not isinstance(name, str):
        raise TypeError("header name %.60r must be str, not %s: write 'Content-Type' (PEP 3333)" % (name, _a(name)))
    if not isinstance(value, str):
        mend = "decode it as latin-1" if isinstance(value, bytes) else "use str(value)"
        raise TypeError("the value of header %s must be str, not %s: %s (PEP 3333)" % (name, _a(value), mend))
    _check_name(name)
    _check_text("header " + name, value)
    return name, value


def _check_name(name: str) -> None:
    if not name or not TOKEN.issuperset(name):
        raise ValueError(
            "header name %.60r may hold letters, digits and !#$%%&'*+-.^_`|~ only: "
            "no colon, no space, nothing else (RFC 9110, section 5.1)" % name
        )
    lower = name.lower()
    if lower in HOP_BY_HOP:
        raise ValueError(
            "header %s is hop-by-hop, which an application must not send: leave it out, "
            "the web server sees to the connection (PEP 3333)" % name
        )
    if lower == "status":
        raise ValueError("a header must not be named Status: the status is start_response's first argument (PEP 3333)")
    if lower != "content-length" and len(_names) < MAX_KNOWN:
        _names[str(name)] = "\n" + name + ": "


def _check_text(what: str, text: str) -> None:
    for c in text:
        if (c < " " and c != "\t") or c == "\x7f":
            raise ValueError(
                "control character %r in %s: %.80r; leave it out (a line break would begin a header of its own: "
                "response splitting) (PEP 3333)" % (c, what, text)
            )
        if c > "\xff":
            raise ValueError(
                "character %r in %s is not latin-1: percent-encode it, or use RFC 8187 or 2047 encoding (PEP 3333)"
                % (c, what)
            )


def _length(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= MAX_LENGTH_DIGITS):
        raise ValueError("Content-Length %.40r is not a number of bytes: use str(len(body)) (RFC 9110)" % value)
    return int(value)


def _a(thing: object) -> str:
    return type(thing).__name__
