"""The files that a worker tells of."""

import os
import py_compile
import shutil
import tempfile
import unittest
from importlib.machinery import EXTENSION_SUFFIXES
from unittest.mock import patch

from wsgigate_runner import frames, watch

from .gateway import Process

APP = """
import json, helper, package.part

def application(environ, start_response):
    return globals()[environ["PATH_INFO"][1:]](start_response)

def hello(start_response):
    start_response("200 OK", [])
    return [b"hello"]

def lazy(start_response):
    import later
    return hello(start_response)

def raises(start_response):
    import later
    raise ValueError

def blocks(start_response):
    start_response("200 OK", [])
    import package
    yield b"one"
    import later

class Counted(list):
    pass

def counted(start_response):
    import later
    start_response("200 OK", [])
    return Counted([b"one"])
"""


class Watching(unittest.TestCase):
    def setUp(self):
        self.folder = os.path.realpath(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.write("app.py", APP)
        self.write("helper.py")
        self.write("package/__init__.py")
        self.write("package/part.py")
        self.write("later.py")

    def write(self, name, text=""):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def worker(self, form="app", **init):
        return Process(form, chdir=self.folder, **dict({"watch": True}, **init))

    def begin(self, worker):
        """The files, below the folder by their relative names, and READY or FAILED."""
        got, files = worker.begin(), []
        while got.kind == "IMPORTED":
            self.assertEqual(got.request, 0)
            files += got.payload.split(b"\0")
            got = worker.peer.receive()
        return self.names(files), got

    def names(self, files):
        here = os.fsencode(self.folder) + b"/"
        return sorted(name[len(here) :].decode() if name.startswith(here) else os.fsdecode(name) for name in files)

    def asked(self, worker, path):
        answer = worker.peer.ask(PATH_INFO=path)
        kinds = [each.kind for each in answer.frames]
        self.assertEqual(kinds[-1], "END")
        files = [name for each in answer.frames if each.kind == "IMPORTED" for name in each.payload.split(b"\0")]
        return self.names(files)

    FIRST = ["app.py", "helper.py", "package/__init__.py", "package/part.py"]

    def installed(self, files):
        """What the interpreter's own site packages import is not this test's."""
        return [name for name in files if "-packages/" not in name]

    def test_before_ready(self):
        with self.worker() as worker:
            files, got = self.begin(worker)
            self.assertEqual((self.installed(files), got.kind), (self.FIRST, "READY"))
            self.assertEqual(self.asked(worker, "/hello"), [])

    @patch.dict(os.environ)
    def test_a_save_within_the_second(self):
        """The text that was imported last is not what a .pyc file made of the one before."""
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for text in ("one", "two", "six"):
            self.write("helper.py", "print(%r)" % text)
            with self.worker() as worker:
                self.assertEqual(self.begin(worker)[1].kind, "READY")
                self.assertEqual(worker.logged(), text + "\n")
        self.assertNotIn("__pycache__", os.listdir(self.folder))

    def test_nothing_unless_asked(self):
        with self.worker(watch=False) as worker:
            self.assertEqual(worker.begin().kind, "READY")
            self.assertEqual(self.asked(worker, "/lazy"), [])

    def test_imported_in_a_request(self):
        for path in ("/lazy", "/raises", "/blocks", "/counted"):
            with self.subTest(path), self.worker() as worker:
                self.begin(worker)
                self.assertEqual(self.asked(worker, path), ["later.py"])
                self.assertEqual(self.asked(worker, path), [])

    def test_in_threads(self):
        with self.worker(slots=2) as worker:
            self.begin(worker)
            worker.peer = worker.peers[1]
            self.assertEqual(self.asked(worker, "/lazy"), ["later.py"])

    def test_with_the_validator(self):
        self.write("plain.py", APP.replace('"200 OK", []', '"200 OK", [("Content-Type", "text/plain")]'))
        with self.worker("plain", debug=True) as worker:
            self.begin(worker)
            self.assertEqual(self.asked(worker, "/blocks"), ["later.py"])

    def test_file_forms(self):
        for name in ("site.wsgi", "other.py"):
            self.write("deploy/" + name, "from helper import *\ndef application(environ, start_response): pass")
            with self.subTest(name), self.worker("deploy/" + name, pythonpath=[self.folder]) as worker:
                files, got = self.begin(worker)
                self.assertEqual((self.installed(files), got.kind), (["deploy/" + name, "helper.py"], "READY"))

    def test_relative_names_and_an_application_that_moves(self):
        self.write("moves.py", "import os, helper\nos.chdir('/')\nfrom app import application")
        with self.worker("moves", pythonpath=["."]) as worker:
            files, _ = self.begin(worker)
            self.assertEqual(self.installed(files), sorted([*self.FIRST, "moves.py"]))

    def test_failed_import(self):
        failing = {
            "syntax error": ("def (", "bad.py"),
            "exception": ("1/0", "bad.py"),
            "exit": ("raise SystemExit(3)", "bad.py"),
            "missing module": ("import nowhere", "bad.py"),
            "deeper": ("import package.broken", "package/broken.py"),
            "replaced exception": (
                "try:\n import package.broken\nexcept ImportError:\n import nowhere",
                "package/broken.py",
            ),
        }
        self.write("package/broken.py", "import nothing")
        self.write("start.py", "import helper\nimport bad")
        for name, (text, file) in failing.items():
            self.write("bad.py", text)
            for form in ("start", "start.py"):
                with self.subTest(name, form=form), self.worker(form) as worker:
                    files, got = self.begin(worker)
                    self.assertEqual(got.kind, "FAILED")
                    for each in ("start.py", "helper.py", "bad.py", file):
                        self.assertIn(each, files)

    def test_failed_form(self):
        with self.worker("app:nothing") as worker:
            files, got = self.begin(worker)
            self.assertEqual((self.installed(files), got.kind), (self.FIRST, "FAILED"))

    def test_failed_factory(self):
        self.write("makes.py", "import helper\ndef make():\n import app\n raise OSError")
        with self.worker("makes:make()") as worker:
            files, got = self.begin(worker)
            self.assertEqual(got.kind, "FAILED")
            self.assertIn("app.py", files)
            self.assertIn("makes.py", files)

    def test_failed_folder(self):
        with Process("app", chdir=self.folder + "/nowhere", watch=True) as worker:
            self.assertEqual(worker.begin().kind, "FAILED")

    def test_compiled_without_a_source(self):
        py_compile.compile(self.write("bare.py"), os.path.join(self.folder, "bare.pyc"), doraise=True)
        os.remove(os.path.join(self.folder, "bare.py"))
        self.write("uses.py", "import bare\nfrom app import application")
        with self.worker("uses") as worker:
            self.assertIn("bare.pyc", self.begin(worker)[0])

    def test_extension_module(self):
        """All that tells one is its file's name: no Python is compiled for it."""
        name = "native" + EXTENSION_SUFFIXES[0]
        self.write(name)
        source = "import app, sys, types\napplication = app.application\n"
        source += "sys.modules['native'] = types.ModuleType('native')\n"
        self.write("uses.py", source + "sys.modules['native'].__file__ = %r" % os.path.join(self.folder, name))
        with self.worker("uses") as worker:
            self.assertIn(name, self.begin(worker)[0])

    def test_modules_of_every_kind(self):
        """Whatever lies in sys.modules is not woken, and breaks nothing."""
        self.write(
            "odd.py",
            """
import sys, types
from app import application

class Asleep(types.ModuleType):
    def __getattribute__(self, name):
        raise RuntimeError("woken by " + name)

for number, value in enumerate([None, 5, "text", object(), types.SimpleNamespace(__file__=5), Asleep("asleep")]):
    sys.modules["odd%d" % number] = value
for number, name in enumerate(["", "nowhere.py", "a\\0b.py", "<string>", "\\udc80.py", 5, b"helper.py"]):
    module = types.ModuleType("named")
    module.__file__ = name
    sys.modules["named%d" % number] = module
""",
        )
        with self.worker("odd") as worker:
            files, got = self.begin(worker)
            self.assertEqual((self.installed(files), got.kind), (sorted([*self.FIRST, "odd.py"]), "READY"))

    def test_name_that_is_not_utf_8(self):
        folder = os.fsencode(self.folder) + b"/b\xfccher"
        os.mkdir(folder)
        with open(folder + b"/module.py", "w"):
            pass
        self.write(
            "uses.py",
            "import os, sys\nsys.path.append(%r)\nimport module\nfrom app import application" % os.fsdecode(folder),
        )
        with self.worker("uses") as worker:
            got = worker.begin()
            self.assertEqual(got.kind, "IMPORTED")
            self.assertIn(folder + b"/module.py", got.payload.split(b"\0"))


class Names(unittest.TestCase):
    def test_source_of_a_compiled_file(self):
        self.assertEqual(watch._source("/srv/__pycache__/views.cpython-311.pyc"), "/srv/views.py")
        self.assertEqual(watch._source("/srv/__pycache__/views.cpython-311.opt-1.pyc"), "/srv/views.py")
        self.assertEqual(watch._source("/srv/views.py"), "/srv/views.py")

    def test_many_names_make_several_frames(self):
        names = ["/srv/%d/%s.py" % (number, "x" * 200) for number in range(1000)]
        got = []
        for frame in watch._frames(7, names):
            kind, flags, length, request = frames.HEAD.unpack_from(frame)
            self.assertEqual((kind, flags, request), (frames.IMPORTED, 0, 7))
            self.assertEqual(length + frames.LENGTH_END, len(frame))
            self.assertLessEqual(len(frame) - frames.HEAD.size, frames.MAX_TEXT)
            got += frame[frames.HEAD.size :].decode().split("\0")
        self.assertEqual(got, names)
        self.assertEqual(list(watch._frames(0, [])), [])


if __name__ == "__main__":
    unittest.main()
