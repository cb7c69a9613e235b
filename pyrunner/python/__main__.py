"""What the interpreter runs first: ``python ARCHIVE N``.

The syntax of this one file is that of Python 2.7 as well, so that an interpreter
which is too old says so in a sentence instead of a SyntaxError.
"""

import sys

if sys.version_info < (3, 8):
    import os
    import struct

    TOO_OLD = "wsgigate needs Python 3.8 or newer; this is Python %s (%s): choose another one with --python\n" % (
        sys.version.split()[0],
        sys.executable,
    )
    sys.stderr.write(TOO_OLD)
    if len(sys.argv) > 1:  # FAILED in place of HELLO, see PROTOCOL.md
        reason = TOO_OLD.encode("utf-8")
        os.write(int(sys.argv[1]), struct.pack("<BBHII", 0x83, 0, 0, 4 + len(reason), 0) + reason)
    sys.exit(1)

from wsgigate_runner.worker import main  # noqa: E402

sys.exit(main(sys.argv))
