"""The Python half of wsgigate: runs one WSGI application for the gateway.

Data goes ``gateway -> frames -> slot -> application -> response -> frames -> gateway``.
PROTOCOL.md describes the frames, PEP 3333 the rest. Only the standard library of
CPython 3.8 and PyPy 3.9, or newer, is used.
"""
