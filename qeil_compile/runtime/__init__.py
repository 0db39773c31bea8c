"""Run lowered plans: find engines for placements, execute units, compare with golden outputs, go on after faults."""

from .compiled import Compiled
from .decisions import Decision, DecisionLog
from .executor import Executor
from .explain import Explanation, explain
from .faults import Deadline, Fault, FaultKind, StageFault
from .resilience import Resilience
from .resilient import ResilientModel, ResilientSession, TaintedError
from .resolve import Resolved, resolve
from .supervisor import Supervisor
from .trace import Trace

__all__ = ["Compiled", "Deadline", "Decision", "DecisionLog", "Executor", "Explanation", "Fault", "FaultKind",
           "Resilience", "ResilientModel", "ResilientSession", "Resolved", "StageFault", "Supervisor", "TaintedError",
           "Trace", "explain", "resolve"]  # fmt: skip
