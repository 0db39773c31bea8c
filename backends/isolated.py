"""The process of an isolated stage: `python -m qeil_compile.backends.isolated DESCRIPTOR`."""

from __future__ import annotations

import signal
import socket
import sys

from qeil_compile.backends.isolation import serve

if __name__ == "__main__":
    # Ctrl-C is the parent's to handle; it closes the socket then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
