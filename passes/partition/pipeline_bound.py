"""A lower bound on the largest load of any split."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from qeil_compile.passes.partition.pipeline_problem import Problem


def bound(p: Problem) -> float:
    """No split has a smaller largest load [s]. Transfers are left out; a time is too short by one of two arguments.

    - Work shared perfectly (linear relaxation: units are divided), where no unit uses a device on which it alone takes
      longer than that time. So the longest unit bounds it too.
    - Pigeonholes: of the k m + 1 longest units that only m devices can run in time, k + 1 meet on one device.
    """
    low, high = 0.0, float(p.free.seconds.min(axis=1).sum())
    for _ in range(40):  # what is too short stays so for any shorter time
        middle = (low + high) / 2
        if _crowded(p.free.seconds, middle) or _shared(p.free.seconds, middle) > middle * (1 + 1e-9):
            low = middle
        else:
            high = middle
    return low


def _crowded(seconds: np.ndarray, time: float) -> bool:
    """Whether pigeonholes show that units do not finish by `time`."""
    able = seconds <= time
    if not able.any(axis=1).all():
        return True
    for devices in np.unique(able, axis=0):
        m = int(devices.sum())
        within = ~(able & ~devices).any(axis=1)
        least = np.sort(np.where(devices, seconds, np.inf)[within].min(axis=1))[::-1]
        for k in range(1, (len(least) - 1) // m + 1):
            if least[k * m - k : k * m + 1].sum() > time:
                return True
    return False


def _shared(seconds: np.ndarray, time: float) -> float:
    """Least time to share the work, where no unit uses a device that takes longer than `time` for it; 0 if the solver
    gives no answer."""
    units, devices = seconds.shape
    u, d = np.nonzero(seconds <= time)
    n = len(u)
    whole = coo_matrix((np.ones(n), (u, np.arange(n))), shape=(units, n + 1))
    work = coo_matrix(
        (np.append(seconds[u, d], np.full(devices, -1.0)),
         (np.append(d, np.arange(devices)), np.append(np.arange(n), np.full(devices, n)))), shape=(devices, n + 1)
    )  # fmt: skip
    aim = np.zeros(n + 1)
    aim[n] = 1.0
    done = linprog(
        aim, A_ub=work.tocsr(), b_ub=np.zeros(devices), A_eq=whole.tocsr(), b_eq=np.ones(units), method="highs"
    )
    return float(done.fun) if done.status == 0 else 0.0
