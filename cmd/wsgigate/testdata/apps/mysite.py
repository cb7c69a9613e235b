"""Answers with what the query names: ?NAME is environ[NAME], ?os.NAME is os.environ[NAME]."""

import os
import sys


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["".join(line + "\n" for line in shown(environ)).encode("latin-1")]


def shown(environ):
    for name in environ["QUERY_STRING"].split("&"):
        if name == "body":
            yield environ["wsgi.input"].read().decode("latin-1")
        elif name == "cwd":
            yield os.getcwd()
        elif name == "path":
            yield sys.path[0]
        elif name == "python":
            yield sys.executable
        elif name.startswith("os."):
            yield os.environ.get(name[3:], "(none)")
        else:
            yield str(environ.get(name, "(none)"))


def create():
    return application
