"""Requests that get stuck until the file "go" is there, then answer all the same."""

import ctypes
import os
import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that an answer could come too late

libc = ctypes.PyDLL(None)  # its functions keep the interpreter's lock


def sleeps():
    while not os.path.exists("go"):
        time.sleep(0.3)  # stuck: sleeps


def holds_gil():
    libc.usleep(600000)  # stuck: holds_gil
    while not os.path.exists("go"):
        libc.usleep(300000)


def loops():
    while True:
        for _ in range(1000000):
            pass  # stuck: loops
        if os.path.exists("go"):
            return


def cleans():
    try:
        time.sleep(3600)
    except BaseException as err:
        with open("cleaned", "w") as file:
            file.write("%s: %s" % (type(err).__name__, err))
        raise


STUCK = {"/sleeps": sleeps, "/gil": holds_gil, "/loops": loops, "/cleans": cleans}


def app(environ, start_response):
    stuck = STUCK.get(environ["PATH_INFO"])
    body = b"%d" % os.getpid()
    if stuck:
        stuck()
        body = b"late"
        open("answered", "w").close()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
