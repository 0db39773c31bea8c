"""The command line: `qeil compile`, `run`, `explain`, `verify`, `devices`, `demo`."""

from .app import main

__all__ = ["main"]
