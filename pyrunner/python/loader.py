"""From an application form (CLI.md: ``module:callable``, a file, ...) to the callable.

Every mistake has a sentence of its own that says how to mend it.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import FunctionType, MethodType, ModuleType

from .errors import in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_NAMES = ("application", "app")
SHOWN = 8  # names listed as candidates, at most

_FILE_ENDINGS = (".py", ".wsgi")
_VARARGS, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x80, 0x200  # of co_flags


class LoadError(Exception):
    """The application cannot be loaded: a sentence with the mend, and the traceback or ''."""

    def __init__(self, sentence: str, trace: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.trace = trace


def load(form: str) -> Any:
    """Return the application for a form. Raises LoadError."""
    place, name, is_file = _split(form)
    module = _load_file(place) if is_file else _load_module(place)
    name = name or _default_name(module, place)
    where = "%s:%s" % (place, name)
    if name.endswith("()"):
        return _checked(_call_factory(_attribute(module, name[:-2], place), where), where, True)
    return _checked(_attribute(module, name, place), where, False)


def script_of(form: str) -> str:
    """Return what sys.argv[0] is for an application: its file, or its module's name."""
    return _split(form)[0]


def folder_of(form: str) -> str:
    """Return the folder that is the application's own on sys.path."""
    place, _, is_file = _split(form)
    return os.path.dirname(os.path.abspath(place)) if is_file else os.getcwd()


def _split(form: str) -> tuple[str, str, bool]:
    """Return the module or file, the name in it or '', and whether it is a file."""
    place, colon, name = form.rpartition(":")
    if not colon or "/" in name:
        place, name = form, ""
    return place, name, "/" in place or place.endswith(_FILE_ENDINGS)


# Modules and files


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise LoadError("%r is not a module's name: write module:callable, or path/to/file.py:callable" % name)
    try:
        return import_module(name)
    except ModuleNotFoundError as err:
        if err.name is not None and (name == err.name or name.startswith(err.name + ".")):
            raise LoadError(_no_module(name, err.name)) from None
        raise _import_failed(name, err) from err
    except BaseException as err:
        raise _import_failed(name, err) from err


def _no_module(name: str, missing: str) -> str:
    here = os.getcwd()
    sentence = "there is no module %r in %s or on the module path" % (missing, here)
    try:
        entries = sorted(os.listdir(here))
    except OSError:
        entries = []
    for entry in entries:
        below = os.path.join(here, entry, missing.partition(".")[0])
        if os.path.exists(below + ".py") or os.path.exists(os.path.join(below, "__init__.py")):
            folder = os.path.dirname(below)
            return sentence + ", but there is one in %s: use --chdir %s" % (folder, folder)
    if os.path.exists(name + ".wsgi"):
        return sentence + ", but there is a file: write %s.wsgi" % name
    return sentence + ": check its spelling, or use --chdir DIR or --pythonpath DIR"


def _load_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise LoadError(
            "%s %s (working directory: %s): check its spelling, or use --chdir DIR" % (path, what, os.getcwd())
        )
    name = os.path.splitext(os.path.basename(path))[0]
    full = os.path.abspath(path)
    if name in sys.modules or not name.isidentifier() or not path.endswith(".py"):
        # Must not replace another module. A .wsgi file often imports the one of its own name beside it.
        name = "_wsgigate_" + "".join(c if c.isalnum() else "_" for c in name)
    module = ModuleType(name)
    module.__file__ = full
    try:
        with open(full, "rb") as file:
            source = file.read()
        # Under its name, so that what it imports can import it in turn and get this one.
        sys.modules[name] = module
        exec(compile(source, full, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  a .wsgi file
    except BaseException as err:
        sys.modules.pop(name, None)
        raise _import_failed(path, err) from err
    return module


def _import_failed(what: str, err: BaseException) -> LoadError:
    if not isinstance(err, (Exception, SystemExit, KeyboardInterrupt)):
        raise err  # the runner's own: SIGTERM came
    reason, trace = in_words(err, hidden="importlib")
    if isinstance(err, SyntaxError):
        return LoadError("%s has a syntax error at %s:%s: %s" % (what, err.filename, err.lineno, err.msg), trace)
    if isinstance(err, SystemExit):
        return LoadError(
            "%s exits while it is imported (%s): put what is meant for a script under if __name__ == '__main__':"
            % (what, reason),
            trace,
        )
    if isinstance(err, ModuleNotFoundError):
        mend = "install it for %s, or choose another interpreter with --python" % sys.executable
        return LoadError("%s imports %r, which is missing: %s" % (what, err.name, mend), trace)
    return LoadError("%s cannot be imported: %s" % (what, reason), trace)


# The callable


def _default_name(module: ModuleType, place: str) -> str:
    for name in DEFAULT_NAMES:
        if hasattr(module, name):
            return name
    raise LoadError("%s has neither 'application' nor 'app': %s" % (place, _candidates(module, place)))


def _attribute(module: ModuleType, path: str, place: str) -> Any:
    found: Any = module
    if not all(part.isidentifier() for part in path.split(".")):
        raise LoadError("%r is not the name of a callable: write %s:name or %s:factory()" % (path, place, place))
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError("%s has no %r: %s" % (place, path, _candidates(module, place))) from None
    return found


def _candidates(module: ModuleType, place: str) -> str:
    names: list[str] = []
    for name, value in vars(module).items():
        if name.startswith("_") or not callable(value) or isinstance(value, type):
            continue
        imported = hasattr(value, "__qualname__") and value.__module__ != module.__name__
        if not imported:
            mistake = _signature_mistake(value)
            if not mistake:
                names.append("%s:%s" % (place, name))
            elif _takes_nothing(value):
                names.append("%s:%s()" % (place, name))
    if not names:
        return "write %s:name with the name of its WSGI callable" % place
    return "perhaps " + " or ".join(names[:SHOWN])


def _call_factory(factory: Any, where: str) -> Any:
    if not callable(factory):
        raise LoadError("%s: %s is not callable, so it is no factory: leave out the ()" % (where, _kind(factory)))
    try:
        return factory()
    except BaseException as err:
        if not isinstance(err, (Exception, SystemExit, KeyboardInterrupt)):
            raise
        reason, trace = in_words(err)
        raise LoadError("the factory %s raised %s" % (where, reason), trace) from err


def _checked(app: Any, where: str, made: bool) -> Any:
    """Return the application if it can be one."""
    what = "what %s returned" % where if made else where
    if isinstance(app, ModuleType):
        raise LoadError("%s is a module: write %s:application" % (what, app.__name__))
    if not callable(app):
        raise LoadError(
            "%s is not callable but %s: a WSGI application is a callable that takes (environ, start_response)"
            % (what, _kind(app))
        )
    mistake = _signature_mistake(app)
    if not mistake:
        return app
    if _takes_nothing(app) and not made:
        raise LoadError("%s %s: if it makes the application, write %s()" % (what, mistake, where))
    raise LoadError("%s %s: a WSGI application takes two, (environ, start_response)" % (what, mistake))


def _takes_nothing(app: Any) -> bool:
    found = _code_of(app)
    return found is not None and found[1] == 0


def _signature_mistake(app: Any) -> str:
    """Say why two positional arguments cannot be passed; '' if they can or nobody knows.

    Looks at code objects only: the module inspect takes longer to import than many
    applications.
    """
    found = _code_of(app)
    if found is None:
        return ""
    code, required, positional = found
    if code.co_flags & (_COROUTINE | _ASYNC_GENERATOR):
        return "is async, so it is an ASGI application (wrap it in an adapter such as a2wsgi)"
    if required <= 2 and (positional >= 2 or code.co_flags & _VARARGS):
        return ""
    if not positional:
        return "takes no arguments"
    if required == positional:
        return "takes %d argument%s" % (required, "" if required == 1 else "s")
    return "takes %d to %d arguments" % (required, positional)


def _code_of(app: Any) -> tuple[Any, int, int] | None:
    """Return the code that a call of app runs, and how many positional arguments it
    requires and accepts; None if that is not Python code.
    """
    bound = 0
    if isinstance(app, type):
        app, bound = getattr(app, "__init__", None), 1
    elif not isinstance(app, (FunctionType, MethodType)):
        app = getattr(app, "__call__", None)  # noqa: B004  its code is wanted
    if isinstance(app, MethodType):
        app, bound = app.__func__, bound + 1
    if not isinstance(app, FunctionType):
        return None
    code = app.__code__
    positional = max(0, code.co_argcount - bound)
    required = max(0, positional - len(app.__defaults__ or ()))
    if code.co_kwonlyargcount > len(app.__kwdefaults__ or ()):
        required += 3  # a keyword that is never passed: cannot be called
    return code, required, positional


def _kind(thing: object) -> str:
    return "None" if thing is None else "of type " + type(thing).__name__


def describe_application(app: Any) -> str:
    """Return a name for the log: the type of an instance, else the callable's own."""
    named = app if hasattr(app, "__qualname__") else type(app)
    return "%s.%s" % (named.__module__, named.__qualname__)
