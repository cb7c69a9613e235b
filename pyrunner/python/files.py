"""wsgi.file_wrapper: a file that the gateway can send by itself."""

from __future__ import annotations

import os
import sys
from io import BufferedRandom, BufferedReader, FileIO
from stat import S_ISREG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FileWrapper:
    """The iterable of PEP 3333's "Optional Platform-Specific File Handling"."""

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        block: bytes = self.filelike.read(self.block_size)
        if block:
            return block
        raise StopIteration


def file_part(filelike: Any) -> tuple[int, int, int] | None:
    """Return descriptor, position and bytes left of a real file, or None.

    Only types that are known to read their descriptor's bytes unchanged are taken:
    a GzipFile has fileno() too, but means other bytes.
    """
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and type(filelike) is tempfile._TemporaryFileWrapper:
        filelike = filelike.file
    if isinstance(filelike, BufferedRandom):
        filelike.flush()
    if not isinstance(filelike, FileIO) and not (
        isinstance(filelike, (BufferedReader, BufferedRandom)) and isinstance(filelike.raw, FileIO)
    ):
        return None
    try:
        fd = filelike.fileno()
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode) or not filelike.readable():
            return None
        position = filelike.tell()
    except (OSError, ValueError):
        return None  # reading it will tell what is wrong
    return fd, position, max(0, status.st_size - position)
