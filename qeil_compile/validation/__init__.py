"""The cost model against measurements that were made elsewhere, and against this machine's clock."""

from .report import Claim
from .run import Settings, validate, write

__all__ = ["Claim", "Settings", "validate", "write"]
