"""The deployment artifact: a folder or uncompressed zip, hashed, atomic, without pickle or code."""

from .contents import Contents, Golden, Sizes
from .read import read
from .write import SCHEMA, write

__all__ = ["SCHEMA", "Contents", "Golden", "Sizes", "read", "write"]
