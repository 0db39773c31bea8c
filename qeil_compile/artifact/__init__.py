"""The deployment artifact: a folder or uncompressed zip, hashed, atomic, without pickle or code."""

from .contents import Contents, Golden, Sizes
from .folder import SCHEMA
from .read import read
from .write import write

__all__ = ["SCHEMA", "Contents", "Golden", "Sizes", "read", "write"]
