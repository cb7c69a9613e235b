"""Prints what CPython's wsgiref.util makes of some environs, for uri_test.go.

    python3 testdata/wsgiref_uri.py > testdata/wsgiref_uri.json
"""

import itertools
import json
from wsgiref.util import application_uri, guess_scheme, request_uri, shift_path_info

BASE = {"SERVER_NAME": "server.test", "SERVER_PORT": "80"}
HOSTS = [
    {},
    {"SERVER_PORT": "8000"},
    {"SERVER_PORT": "443"},
    {"HTTPS": "on"},
    {"HTTPS": "on", "SERVER_PORT": "443"},
    {"HTTP_HOST": "host.test"},
    {"HTTP_HOST": "host.test:8080", "HTTPS": "1"},
    {"HTTP_HOST": "", "SERVER_PORT": "81"},
    {"HTTP_HOST": "[2001:db8::1]:81"},
]
PATHS = [
    ("", "/"),
    ("", "/a b"),
    ("", "/a;b=c,d"),
    ("/app", ""),
    ("/app", "/"),
    ("/app;v=1,2", "/x;v=1,2"),
    ("/a b", "/caf\xc3\xa9"),
    ("/\xe9", "/\xff\x00\n"),
    ("", "/~u/!$&'()*+:@%?#[]_.-\"<>\\^`{|}"),
    ("/~u!$&'()*+:@", "//x"),
]
QUERIES = ["", "a=1&b=%20", "x y\xe9"]
SHIFTS = [
    ("", ""), ("", "/"), ("", "/x"), ("", "/x/"), ("", "/x/y/z"), ("/a", "/"), ("/a", ""), ("/a", "/x/y"),
    ("/a", "//x"), ("/a", "/x//y"), ("/a", "///x///y///"), ("/a", "/./x"), ("/a", "/."), ("/a", "/x/."),
    ("/a", "/.."), ("/a/b", "/../x"), ("", "/.."), ("", "/../.."), ("/a", "/..."), ("/a/", "/x"), ("/a//b", "/x"),
    ("//a", "/x"), ("///a", "/x"), ("/", "/x"), ("/a", "//"), ("", "//"), ("/a", "/caf\xe9/\xff"), ("/a/.", "/x/"),
]


def main():
    uris = []
    hosts = itertools.product(HOSTS, PATHS[:2], QUERIES[:1])
    paths = itertools.product(HOSTS[:1], PATHS, QUERIES)
    for host, (script, info), query in itertools.chain(hosts, paths):
        environ = dict(BASE, SCRIPT_NAME=script, PATH_INFO=info, QUERY_STRING=query)
        environ.update(host)
        given = dict(environ)
        environ["wsgi.url_scheme"] = guess_scheme(environ)
        uris.append({
            "environ": given,
            "application": application_uri(environ),
            "request": request_uri(environ),
            "path": request_uri(environ, include_query=False),
        })
    shifts = []
    for script, info in SHIFTS:
        environ = {"SCRIPT_NAME": script, "PATH_INFO": info}
        name = shift_path_info(environ)
        shifts.append({"script": script, "info": info, "name": name,
                       "script_after": environ["SCRIPT_NAME"], "info_after": environ["PATH_INFO"]})
    print('{"uris": [\n%s\n], "shifts": [\n%s\n]}' % (lines(uris), lines(shifts)))


def lines(rows):
    return ",\n".join(json.dumps(row) for row in rows)


if __name__ == "__main__":
    main()
