"""Exact dynamic programme along the order of groups, for stages that run one after another.

On a graph that is a chain (each group reads only the one before) the assignment minimises a scalarisation exactly,
boundaries, transfers and idle power included, where memory does not bind and leakage is constant. On other graphs
tensors that skip groups are priced as if they moved when they are read, from the placement of the group before: a good
start without a promise. O(groups x placements^2).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from qeil_compile.passes.partition.tables import Tables


@njit(cache=True, nogil=True)
def chain(t: Tables, leakage: np.ndarray, wl: float, we: float, wu: float = 0.0) -> np.ndarray:
    """Placement per group, int64[n], for `wl` latency [1/s] + `we` energy [1/J] - `wu` useful time [1/s].

    `leakage` [W] by device is held constant; useful time is the sum of `Tables.useful`.
    """
    n, places = t.seconds.shape
    came = np.zeros((n, places), np.int16)
    best, fresh = np.zeros(places), np.zeros(places)
    idle = t.power_idle.sum()
    for g in range(n):
        phase = t.phase[g]
        runs = t.runs[phase]
        begins = g == 0 or t.phase[g - 1] != phase
        for p in range(places):
            d = t.device[p]
            # Waiting devices draw idle power for as long as the run takes; a working one draws its own instead.
            second = wl + we * (t.power_const[d] + leakage[d] + idle - t.power_idle[d])
            own = runs * (second * t.seconds[g, p] + we * t.dynamic[g, p] - wu * t.useful[g, p])
            if begins:
                own += runs * second * t.entry[phase, p]
            least, source = np.inf, 0
            for q in range(places):
                value = best[q]
                if not begins and q != p:
                    value += runs * second * t.boundary[q, p]
                    e = t.device[q]
                    if e != d:
                        for k in range(t.read_ptr[g], t.read_ptr[g + 1]):
                            tensor = t.read[k]
                            size = t.nbytes[tensor]
                            if t.crossing[tensor] == 0 and size > 0:
                                value += runs * (wl + we * idle) * (t.link_latency[e, d] + size * t.link_inverse[e, d])
                                value += runs * we * size * t.link_joules[e, d]
                if value < least:
                    least, source = value, q
            fresh[p] = least + own if t.allowed[g, p] else np.inf
            came[g, p] = source
        best[:] = fresh
    place = np.zeros(n, np.int64)
    if n:
        place[n - 1] = best.argmin()
        for g in range(n - 1, 0, -1):
            place[g - 1] = came[g, place[g]]
    return place


def front_of_chains(t: Tables, leakage: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """Assignments along the front, each best for one weighting, int64[n] each.

    Under-utilisation is 1 - useful / (devices L): a group is worth a slower device, at a latency of L0, once its share
    s of the roof there passes `share`, where useful time is worth 1 / `share` of latency. The weightings go through
    shares and through mixtures of latency and energy.
    """
    found = []
    for energy in (0.0, 0.25, 0.5, 0.75, 1.0):
        wl, we = (1.0 - energy) / scale[0], energy / scale[1]
        # What a second of the whole plan costs, work aside: the price that useful time has to pay.
        second = wl + we * float(t.power_idle.sum())
        found.append(chain(t, leakage, wl, we))
        for share in np.geomspace(1.0, 0.02, 24):
            found.append(chain(t, leakage, wl, we, float(second / share)))
    return list({p.tobytes(): p for p in found}.values())
