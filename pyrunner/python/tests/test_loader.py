"""The application forms of CLI.md, and a sentence for each mistake."""

import os
import sys
import tempfile
import textwrap
import unittest

from wsgigate_runner import loader

GOOD = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"application"]

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"app"]
"""


class Case(unittest.TestCase):
    """Runs in a temporary working directory that is on sys.path."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = os.path.realpath(folder.name)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        path, modules = list(sys.path), set(sys.modules)
        self.addCleanup(lambda: sys.path.__setitem__(slice(None), path))
        self.addCleanup(lambda: [sys.modules.pop(name) for name in set(sys.modules) - modules])
        sys.path.insert(0, self.folder)

    def file(self, name, text=""):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as out:
            out.write(textwrap.dedent(text))
        sys.path_importer_cache.clear()
        return path

    def run_app(self, form):
        body = loader.load(form)({}, lambda status, headers: None)
        return b"".join(body).decode()

    def refused(self, form, *messages):
        with self.assertRaises(loader.LoadError) as caught:
            loader.load(form)
        for message in messages:
            self.assertIn(message, caught.exception.sentence)
        self.assertNotIn("\n", caught.exception.sentence)
        return caught.exception


class Forms(Case):
    def test_module(self):
        self.file("mysite.py", GOOD)
        self.assertEqual(self.run_app("mysite"), "application")
        self.assertEqual(self.run_app("mysite:app"), "app")

    def test_default_names(self):
        self.file("onlyapp.py", GOOD.replace("application(", "other("))
        self.assertEqual(self.run_app("onlyapp"), "app")

    def test_package_and_dotted_callable(self):
        self.file("pack/__init__.py")
        self.file("pack/web.py", GOOD + "class Site:\n    wsgi = staticmethod(app)\nsite = Site()\n")
        self.assertEqual(self.run_app("pack.web"), "application")
        self.assertEqual(self.run_app("pack.web:site.wsgi"), "app")

    def test_factory(self):
        self.file("made.py", GOOD + "calls = []\ndef create():\n    calls.append(1)\n    return app\n")
        self.assertEqual(self.run_app("made:create()"), "app")
        self.assertEqual(sys.modules["made"].calls, [1])

    def test_dotted_factory(self):
        self.file("made.py", GOOD + "class F:\n    @classmethod\n    def create(cls, x=1):\n        return app\n")
        self.assertEqual(self.run_app("made:F.create()"), "app")

    def test_files(self):
        self.file("sub/site.py", GOOD)
        self.file("sub/old.wsgi", GOOD)
        self.file("sub/start", GOOD)
        full = os.path.join(self.folder, "sub")
        for form, expected in [
            ("sub/site.py", "application"),
            ("sub/site.py:app", "app"),
            ("./sub/old.wsgi", "application"),
            ("sub/old.wsgi:app", "app"),
            (full + "/old.wsgi", "application"),
            (full + "/site.py:app", "app"),
            ("sub/start", "application"),
            ("sub/start:app", "app"),
        ]:
            self.assertEqual(self.run_app(form), expected, form)

    def test_file_in_the_working_directory(self):
        self.file("here.py", GOOD)
        self.assertEqual(self.run_app("here.py:app"), "app")

    def test_a_file_is_imported_once_by_its_name(self):
        self.file("sub/site.py", GOOD + "import models\n")
        self.file("sub/models.py", "from site_app import x\n")
        self.file("sub/site_app.py", "x = []\nimport models\n" + GOOD)
        sys.path.insert(0, os.path.join(self.folder, "sub"))
        self.assertEqual(self.run_app("sub/site_app.py"), "application")
        self.assertIs(sys.modules["models"].x, sys.modules["site_app"].x)

    def test_a_file_does_not_replace_another_module(self):
        self.file("os.py", GOOD)
        self.file("odd-name.wsgi", GOOD)
        self.assertEqual(self.run_app("./os.py"), "application")
        self.assertEqual(self.run_app("odd-name.wsgi"), "application")
        self.file("beside.py", GOOD)
        self.file("beside.wsgi", "from beside import app as application\n")
        self.assertEqual(self.run_app("beside.wsgi"), "app")
        self.assertIs(sys.modules["os"], os)

    def test_a_file_knows_where_it_is_and_runs_no_main_part(self):
        self.file("here.py", GOOD + "place = __file__\nif __name__ == '__main__':\n    raise SystemExit(1)\n")
        self.assertIn("here.py", loader.load("here.py:app").__globals__["place"])

    def test_script_and_folder(self):
        for form, script, folder in [
            ("mysite:app", "mysite", self.folder),
            ("a/b.py:app", "a/b.py", os.path.join(self.folder, "a")),
            ("/x/b.wsgi", "/x/b.wsgi", "/x"),
            ("", "", self.folder),
        ]:
            self.assertEqual((loader.script_of(form), loader.folder_of(form)), (script, folder))

    def test_every_shape_of_callable(self):
        self.file(
            "shapes.py",
            """
            import functools
            def function(environ, start_response): pass
            def more(environ, start_response, extra=None, *rest, **named): pass
            def varargs(*args): pass
            def renamed(a, b): pass
            def generator(environ, start_response): yield b""
            def three(x, environ, start_response): pass
            partial = functools.partial(three, 1)
            decorated = functools.wraps(function)(lambda *a, **k: None)
            simple = lambda e, s: []
            builtin = max
            class Instance:
                def __call__(self, environ, start_response): pass
                def method(self, environ, start_response): pass
                @staticmethod
                def static(environ, start_response): pass
                @classmethod
                def klass(cls, environ, start_response): pass
            instance = Instance()
            method, static, klass = instance.method, instance.static, instance.klass
            class Iterating:
                def __init__(self, environ, start_response): pass
            class Made:
                def __new__(cls, environ, start_response): return []
            class Callable:
                __call__ = staticmethod(function)
            static_call = Callable()
            """,
        )
        for name in (
            "function more varargs renamed generator partial decorated simple builtin instance method static klass "
            "Iterating Made static_call"
        ).split():
            self.assertIsNotNone(loader.load("shapes:" + name), name)

    def test_description(self):
        self.file("mysite.py", GOOD + "class Site:\n    def __call__(self, e, s): pass\nsite = Site()\n")
        for name, expected in [("app", "mysite.app"), ("site", "mysite.Site")]:
            self.assertEqual(loader.describe_application(loader.load("mysite:" + name)), expected)


class Mistakes(Case):
    def test_no_such_module(self):
        error = self.refused("mysit:app", "no module 'mysit' in " + self.folder, "--chdir DIR or --pythonpath DIR")
        self.assertEqual(error.trace, "")
        self.file("pack/__init__.py")
        self.refused("pack.web:app", "no module 'pack.web'")
        self.refused("pakc.web:app", "no module 'pakc'")

    def test_wrong_working_directory(self):
        self.file("project/mysite.py", GOOD)
        self.refused("mysite:app", "use --chdir " + os.path.join(self.folder, "project"))

    def test_a_file_with_another_ending(self):
        self.file("mysite.wsgi", GOOD)
        self.refused("mysite:app", "write mysite.wsgi")

    def test_no_modules_name(self):
        self.refused("my-site:app", "'my-site' is not a module's name")
        self.refused(":app", "'' is not a module's name")

    def test_missing_import_inside(self):
        self.file("mysite.py", "import flaskk\n" + GOOD)
        for form in ("mysite:app", "mysite.py"):
            error = self.refused(
                form, "imports 'flaskk', which is missing: install it for " + sys.executable, "--python"
            )
            self.assertIn("import flaskk", error.trace)
            self.assertNotIn("importlib", error.trace)
            self.assertNotIn("loader.py", error.trace)

    def test_import_raises(self):
        self.file("mysite.py", "def f():\n    return 1 / 0\nf()\n")
        for form in ("mysite:app", "mysite.py"):
            error = self.refused(form, "cannot be imported: ZeroDivisionError: division by zero at mysite.py:2")
            self.assertIn("return 1 / 0", error.trace)

    def test_failed_file_leaves_no_module(self):
        self.file("broken_one.py", "1 / 0")
        self.refused("broken_one.py", "ZeroDivisionError")
        self.assertNotIn("broken_one", sys.modules)

    def test_import_exits(self):
        self.file("mysite.py", "import sys\nsys.exit(3)\n")
        self.refused("mysite", "exits while it is imported", "if __name__ == '__main__'")

    def test_syntax_error(self):
        self.file("mysite.py", "x = 1\ndef broken(:\n")
        for form in ("mysite", "mysite.py"):
            error = self.refused(form, "has a syntax error at ", "mysite.py:2")
            self.assertIn("def broken(:", error.trace)

    def test_null_byte(self):
        self.file("mysite.wsgi", "x = '\0'\n")
        self.refused("mysite.wsgi", "null byte")

    def test_no_such_attribute(self):
        self.file(
            "mysite.py",
            GOOD
            + "import os.path\nfrom os import getcwd\nclass K: pass\n"
            + "def create_app(): pass\nasync def a(x, y, z): pass\n",
        )
        error = self.refused(
            "mysite:ap", "mysite has no 'ap'", "perhaps mysite:application or mysite:app or mysite:create_app()"
        )
        self.assertNotIn("mysite:a ", error.sentence + " ")
        self.refused("mysite:app.wsgi", "has no 'app.wsgi'")
        self.file("empty.py")
        self.refused("empty", "neither 'application' nor 'app': write empty:name")
        self.file("named.py", GOOD.replace("application(", "main(").replace("app(", "other("))
        self.refused("named", "neither 'application' nor 'app': perhaps named:main or named:other")

    def test_no_name(self):
        self.file("mysite.py", GOOD)
        self.refused("mysite:5", "'5' is not the name of a callable")
        self.refused("mysite:app(x)", "not the name of a callable", "factory()")

    def test_not_callable(self):
        self.file("mysite.py", "app = 5\nnone = None\nimport os\n")
        self.refused("mysite:app", "mysite:app is not callable but of type int")
        self.refused("mysite:none", "is not callable but None")
        self.refused("mysite:os", "is a module: write os:application")

    def test_wrong_signature(self):
        self.file(
            "mysite.py",
            """
            def one(environ): pass
            def three(a, b, c): pass
            def many(a, b, c, d=1): pass
            def none(): pass
            def optional(config=None): pass
            def keyword(environ, start_response, *, needed): pass
            class K:
                def __call__(self, environ): pass
                def method(self, environ): pass
            instance = K()
            method = instance.method
            class Built:
                def __init__(self): pass
            """,
        )
        self.refused("mysite:one", "mysite:one takes 1 argument:", "(environ, start_response)")
        self.refused("mysite:three", "takes 3 arguments")
        self.refused("mysite:many", "takes 3 to 4 arguments")
        self.refused("mysite:keyword", "takes")
        self.refused("mysite:instance", "takes 1 argument:")
        self.refused("mysite:method", "takes 1 argument:")
        self.refused("mysite:none", "takes no arguments: if it makes the application, write mysite:none()")
        self.refused("mysite:optional", "write mysite:optional()")
        self.refused("mysite:Built", "write mysite:Built()")

    def test_asgi(self):
        self.file(
            "mysite.py",
            """
            async def app(scope, receive, send): pass
            class Fast:
                async def __call__(self, scope, receive, send): pass
            fast = Fast()
            """,
        )
        self.refused("mysite:app", "ASGI")
        self.refused("mysite:fast", "ASGI", "a2wsgi")

    def test_factories(self):
        self.file(
            "mysite.py",
            """
            def raises(): raise ValueError("no database")
            def none(): pass
            def wrong(): return lambda environ: None
            def needs(config): pass
            app = 5
            """,
        )
        error = self.refused(
            "mysite:raises()", "the factory mysite:raises() raised ValueError: no database at mysite.py:2"
        )
        self.assertIn("Traceback", error.trace)
        self.refused("mysite:none()", "what mysite:none() returned is not callable but None")
        self.refused("mysite:wrong()", "what mysite:wrong() returned takes 1 argument")
        self.refused("mysite:needs()", "raised TypeError")
        self.refused("mysite:app()", "no factory: leave out the ()")
        self.refused("mysite:nowhere()", "has no 'nowhere'")

    def test_no_such_file(self):
        self.refused("nowhere.py", "nowhere.py does not exist", "working directory: " + self.folder, "--chdir")
        self.refused("no/where.wsgi:app", "no/where.wsgi does not exist")
        os.mkdir("folder")
        self.refused("./folder", "is not a file")

    def test_unreadable_file(self):
        self.file("mysite.wsgi", GOOD)
        os.rename("mysite.wsgi", "real.wsgi")
        os.symlink("loop.wsgi", "loop.wsgi")
        self.refused("loop.wsgi", "does not exist")


if __name__ == "__main__":
    unittest.main()
