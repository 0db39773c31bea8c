"""Run lowered plans: find engines for placements, execute units, compare with golden outputs."""

from .compiled import Compiled
from .executor import Executor
from .explain import Explanation, explain
from .resolve import Resolved, resolve

__all__ = ["Compiled", "Executor", "Explanation", "Resolved", "explain", "resolve"]
