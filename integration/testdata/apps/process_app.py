"""What a worker is to the system, and processes that it leaves behind."""

import json
import os
import signal
import time


def page(start_response, value):
    body = json.dumps(value).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def ok(environ, start_response):
    return page(start_response, {"pid": os.getpid()})


def status():
    with open("/proc/self/status") as file:
        return {name: value.split() for name, value in (line.split(":", 1) for line in file)}


def identity(environ, start_response):
    umask = os.umask(0)
    os.umask(umask)
    with open("/proc/self/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    return page(
        start_response,
        {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "uid": os.getresuid(),
            "gid": os.getresgid(),
            "groups": sorted(os.getgroups()),
            "capabilities": [status()[name][0] for name in ("CapPrm", "CapEff", "CapAmb")],
            "no_new_privs": status()["NoNewPrivs"][0],
            "environ": dict(os.environ),
            "umask": umask,
            "limits": limits,
        },
    )


def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            pass  # of the listing
    return found


def daemonise(work):
    """Start a daemon in the traditional way; return its process id."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reader)
        os.write(writer, str(os.getpid()).encode("ascii"))
        os.close(writer)
        work()
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return int(file.read())


def sleeper():
    with open("daemon.json", "w") as file:
        json.dump(descriptors(), file)
    os.rename("daemon.json", "daemon.%d" % os.getpid())
    time.sleep(300)


def daemon(environ, start_response):
    """Leave a daemon behind that keeps all that it has inherited."""
    return page(start_response, daemonise(sleeper))


def orphans(environ, start_response):
    """Leave as many processes behind as the query says: half end together, half at any time."""
    together = time.monotonic() + 0.15

    def work():
        pid = os.getpid()
        time.sleep(max(0.0, together - time.monotonic()) if pid % 2 else pid % 150 / 1000)
        os._exit(9)

    return page(start_response, [daemonise(work) for _ in range(int(environ["QUERY_STRING"]))])


def leave(environ, start_response):
    os._exit(int(environ["QUERY_STRING"]))


def kill(environ, start_response):
    os.kill(os.getpid(), signal.SIGKILL)


def wall(environ, start_response):
    """Sleep as the query says, and tell what the wall clock made of it."""
    began = time.time()
    print("sleeping", flush=True)
    time.sleep(float(environ["QUERY_STRING"]))
    return page(start_response, {"wall": time.time() - began})


PAGES = {
    "/ok": ok,
    "/identity": identity,
    "/daemon": daemon,
    "/orphans": orphans,
    "/leave": leave,
    "/kill": kill,
    "/wall": wall,
}


def app(environ, start_response):
    return PAGES[environ["PATH_INFO"]](environ, start_response)
