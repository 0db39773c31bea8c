"""When stages and transfers run: one stage at a time per device, one transfer at a time per link, in order.

Devices that share a memory share its bandwidth. While several of them work at once and together ask for more than
the memory gives, x times as much, the memory-bound part of each stage takes x times as long: every device gets
bandwidth in proportion to what it asks for. The simulation goes from event to event, between which all rates are
constant.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Job:
    """A stage. `seconds` is what it takes alone, `bound` the share of that in which memory binds.

    `demand` [B/s] is the mean rate at which it asks the memory `pool`. `after` are jobs, `arrivals` transfers
    that must end before it starts.
    """

    device: str
    pool: str
    seconds: float
    bound: float
    demand: float
    after: tuple[int, ...]
    arrivals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A transfer of `seconds` over a link, when job `source` has ended."""

    link: tuple[str, str]
    source: int
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """Start and end [s] of each job, float64[jobs]."""

    start: np.ndarray
    end: np.ndarray

    @property
    def latency(self) -> float:
        """When the last job ends."""
        return float(self.end.max(initial=0.0))


def simulate(jobs: Sequence[Job], moves: Sequence[Move], bandwidth: Mapping[str, float]) -> Timeline:
    """Run all jobs; `bandwidth` [B/s] is what each pool gives at most."""
    return _Simulation(jobs, moves, bandwidth).run()


class _Simulation:
    def __init__(self, jobs: Sequence[Job], moves: Sequence[Move], bandwidth: Mapping[str, float]) -> None:
        self.jobs, self.moves, self.bandwidth = jobs, moves, bandwidth
        self.now = 0.0
        self.start, self.end = np.zeros(len(jobs)), np.zeros(len(jobs))
        self.waiting = [len(j.after) + len(j.arrivals) for j in jobs]
        self.readers: list[list[int]] = [[] for _ in jobs]
        self.sent: list[list[int]] = [[] for _ in jobs]
        self.wanted: list[list[int]] = [[] for _ in moves]
        self.device_queue: dict[str, list[int]] = {}
        self.link_queue: dict[tuple[str, str], list[int]] = {}
        #: Running job -> (seconds of work left at full speed, speed, when both were true, number of the event to come).
        self.running: dict[int, tuple[float, float, float, int]] = {}
        self.by_pool: dict[str, list[int]] = {}
        self.moving: set[tuple[str, str]] = set()
        self.done = [False] * len(jobs)
        #: (time, number, job or -1, transfer or -1); events of a job but its last number are out of date.
        self.events: list[tuple[float, int, int, int]] = []
        self.number = 0
        for k, j in enumerate(jobs):
            self.device_queue.setdefault(j.device, []).append(k)
            for source in j.after:
                self.readers[source].append(k)
            for m in j.arrivals:
                self.wanted[m].append(k)
        for m, move in enumerate(moves):
            self.link_queue.setdefault(move.link, []).append(m)
            self.sent[move.source].append(m)
        for queue in (*self.device_queue.values(), *self.link_queue.values()):
            queue.reverse()

    def run(self) -> Timeline:
        for device in self.device_queue:
            self._start_job(device)
        while self.events:
            self.now, number, job, move = heapq.heappop(self.events)
            if move >= 0:
                self._end_move(move)
            elif job in self.running and self.running[job][3] == number:
                self._end_job(job)
        return Timeline(self.start, self.end)

    def _start_job(self, device: str) -> None:
        """The device's next job, if all that it reads is there."""
        queue = self.device_queue[device]
        if not queue or self.waiting[queue[-1]]:
            return
        k = queue[-1]
        if k in self.running:
            return
        self.start[k] = self.now
        pool = self.jobs[k].pool
        self.running[k] = (self.jobs[k].seconds, 0.0, self.now, 0)
        self.by_pool.setdefault(pool, []).append(k)
        self._share_bandwidth(pool)

    def _end_job(self, k: int) -> None:
        job = self.jobs[k]
        self.end[k], self.done[k] = self.now, True
        del self.running[k]
        self.by_pool[job.pool].remove(k)
        self.device_queue[job.device].pop()
        self._share_bandwidth(job.pool)
        for reader in self.readers[k]:
            self._arrived(reader)
        for m in self.sent[k]:
            self._start_move(self.moves[m].link)
        self._start_job(job.device)

    def _arrived(self, k: int) -> None:
        self.waiting[k] -= 1
        self._start_job(self.jobs[k].device)

    def _start_move(self, link: tuple[str, str]) -> None:
        queue = self.link_queue[link]
        if link in self.moving or not queue or not self.done[self.moves[queue[-1]].source]:
            return
        self.moving.add(link)
        self._plan(self.now + self.moves[queue[-1]].seconds, -1, queue[-1])

    def _end_move(self, m: int) -> None:
        link = self.moves[m].link
        self.link_queue[link].pop()
        self.moving.remove(link)
        for reader in self.wanted[m]:
            self._arrived(reader)
        self._start_move(link)

    def _share_bandwidth(self, pool: str) -> None:
        """New speeds of what runs in a pool, and when each will end at that speed."""
        members = self.by_pool[pool]
        limit = self.bandwidth[pool]
        # A time model may say that a stage alone asks for more than the memory gives: caches serve the rest.
        asked = sum(min(self.jobs[k].demand, limit) for k in members)
        crowd = max(1.0, asked / limit)
        for k in members:
            left, speed, since, _ = self.running[k]
            fresh = 1.0 / (1.0 + self.jobs[k].bound * (crowd - 1.0))
            if fresh == speed:
                continue
            left = max(left - (self.now - since) * speed, 0.0)
            self.running[k] = (left, fresh, self.now, self._plan(self.now + left / fresh, k, -1))

    def _plan(self, time: float, job: int, move: int) -> int:
        self.number += 1
        heapq.heappush(self.events, (time, self.number, job, move))
        return self.number
