"""What the interpreter runs first: ``python ARCHIVE N``.

The syntax of this one file is that of Python 2.7 as well, so that an interpreter
which is too old says so in a sentence instead of a SyntaxError.
"""

import sys

if sys.version_info < (3, 8):
    import os
    import struct

    def send(kind, payload):
        os.write(int(sys.argv[1]), struct.pack("<BBHII", kind, 0, 0, 4 + len(payload), 0) + payload)

    version = sys.version.split()[0]
    reason = "wsgigate needs Python 3.8 or newer; this is Python %s (%s): choose another one with --python" % (
        version,
        sys.executable,
    )
    sys.stderr.write(reason + "\n")
    # What frames.py does for the others: HELLO, wait for INIT, FAILED.
    send(0x81, struct.pack("<HI", 1, os.getpid()) + ("Python " + version).encode("utf-8"))
    os.read(int(sys.argv[1]), 1 << 16)
    send(0x83, (reason + "\n").encode("utf-8"))
    sys.exit(1)

from wsgigate_runner.worker import main  # type: ignore[import-not-found]

sys.exit(main(sys.argv))
