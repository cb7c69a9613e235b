"""Tests of the Python half: ``python -m unittest discover`` in pyrunner/python runs them.

The runner's modules are found as the package wsgigate_runner, as in its archive.
"""

import importlib.util
import os
import sys

SOURCES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(os.path.dirname(SOURCES), "testdata", "golden")

if "wsgigate_runner" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "wsgigate_runner", os.path.join(SOURCES, "__init__.py"), submodule_search_locations=[SOURCES]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["wsgigate_runner"] = package
    spec.loader.exec_module(package)
