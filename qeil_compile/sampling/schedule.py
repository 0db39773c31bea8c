"""When to look, and how many samples to draw until then: a dynamic programme over (leader, runner-up) counts.

History (answers of many questions, no labels needed) is drawn in many random orders. At each size n of a grid the state
of a path is (n, votes of the leader, votes of the next), or what another view makes of the samples. Learned per state
are the chance p that the leader is the winner of the full vote, and where the path goes on. Backwards from the last
size, each state takes the cheapest of stopping, at `error` * (1 - p), and of drawing on to a larger size at the price
of that round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from qeil_compile.errors import InputError

from .samples import Sample, Tally
from .views import View, Votes

#: Sizes at which a state may look, as far as the history reaches.
SIZES = (*range(1, 13), 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256)
#: Worths of an error, in passes, among which `History.tune` chooses.
ERRORS = (0.5, 1, 1.4, 2, 2.8, 4, 7, 10, 14, 20, 28, 40, 56, 80, 110, 160, 220, 400, 1000)
State = tuple[int, int, int]


class Step(NamedTuple):
    """Advice in a state: samples of the next round (0: stop), P(leader is right), and what going on is expected to
    bring: the gain of that probability, and passes, over the whole rest of the way."""

    draw: int
    p: float
    gain: float
    passes: float


@dataclass(frozen=True)
class Schedule:
    """Advice for every state that history knows; other states take the advice of the nearest known one."""

    steps: dict[State, Step]
    sizes: tuple[int, ...]
    view: View

    def advise(self, tally: Tally) -> Step:
        """Advice after the draws so far. Past the last size: stop."""
        return self.at(len(tally.samples), *self.view.state(tally))

    def at(self, n: int, leader: int, runner: int) -> Step:
        """Advice in a state."""
        found = self.steps.get((n, leader, runner))
        if found is not None:
            return found
        size = max((s for s in self.sizes if s <= n), default=0)
        key = (n, leader, runner)
        near = min(
            (s for s in self.steps if s[0] == size),
            key=lambda s: (2 * abs((s[1] - s[2]) - (leader - runner)) + abs(s[1] - leader), s),
        )
        step = self.steps[near]
        if step.draw and n > size:  # off the grid: draw to the size that was meant
            step = step._replace(draw=max(size + step.draw - n, 1))
        self.steps[key] = step
        return step


@dataclass(frozen=True)
class History:
    """States along random orders of recorded questions.

    states: at each size, ids [paths] into `keys` of that size; `agrees`: [sizes, paths], whether the leader of that
    moment is the one of the end; `marks`: [sizes, paths], how often answers like it are right, None without labels;
    `questions`: [paths].
    """

    sizes: tuple[int, ...]
    keys: tuple[tuple[State, ...], ...]
    states: tuple[np.ndarray, ...]
    agrees: np.ndarray
    marks: np.ndarray | None
    questions: np.ndarray
    view: View

    def p(self, i: int) -> np.ndarray:
        """P(the leader is the one of the end) by state of size i, shrunk to the prior as by one more question."""
        ids, count = self.states[i], len(self.keys[i])
        visits = np.bincount(ids, minlength=count)
        mean = np.bincount(ids, self.agrees[i], count) / np.maximum(visits, 1)
        seen = np.zeros((count, int(self.questions.max()) + 1), bool)
        seen[ids, self.questions] = True
        weight = seen.sum(axis=1)  # questions seen there: orders of one are no new evidence
        prior = np.array([self.view.prior(*key) for key in self.keys[i]])
        return (weight * mean + prior) / (weight + 1)

    def plan(self, price: Callable[[int], float], error: float) -> Schedule:
        """The cheapest schedule. price(b): passes of a round of b; `error`: passes that a wrong answer is worth."""
        last = len(self.sizes) - 1
        p = [self.p(i) for i in range(last + 1)]
        value = [error * (1 - q) for q in p]
        final = [q.copy() for q in p]  # P(right) at the end of the way
        passes = [np.zeros(len(q)) for q in p]
        draw = [np.zeros(len(q), int) for q in p]
        for i in range(last - 1, -1, -1):
            ids, count = self.states[i], len(self.keys[i])
            visits = np.maximum(np.bincount(ids, minlength=count), 1)
            for j in range(i + 1, last + 1):
                size = self.sizes[j] - self.sizes[i]
                cost = price(size)
                through = self.states[j]
                ahead = np.bincount(ids, value[j][through], count) / visits + cost
                better = ahead < value[i] - 1e-12
                if not better.any():
                    continue
                value[i] = np.where(better, ahead, value[i])
                draw[i] = np.where(better, size, draw[i])
                final[i] = np.where(better, np.bincount(ids, final[j][through], count) / visits, final[i])
                passes[i] = np.where(better, np.bincount(ids, passes[j][through], count) / visits + cost, passes[i])
        steps = {
            key: Step(int(draw[i][s]), float(p[i][s]), float(final[i][s] - p[i][s]), float(passes[i][s]))
            for i in range(last + 1)
            for s, key in enumerate(self.keys[i])
        }
        return Schedule(steps, self.sizes, self.view)

    def part(self, chosen: np.ndarray) -> History:
        """The same of some questions only. chosen: bool [questions]."""
        paths = chosen[self.questions]
        keys, states = [], []
        for known, ids in zip(self.keys, self.states, strict=True):
            seen, again = np.unique(ids[paths], return_inverse=True)
            keys.append(tuple(known[s] for s in seen))
            states.append(again)
        marks = None if self.marks is None else self.marks[:, paths]
        return History(
            self.sizes, tuple(keys), tuple(states), self.agrees[:, paths], marks, self.questions[paths], self.view
        )  # fmt: skip

    def follow(self, schedule: Schedule, price: Callable[[int], float]) -> tuple[np.ndarray, np.ndarray]:
        """What a schedule gives along these paths, by path: right (marked so, or else as the end is) and passes."""
        known = self.agrees if self.marks is None else self.marks
        count = known.shape[1]
        right, passes = np.empty(count), np.zeros(count)
        places = {size: i for i, size in enumerate(self.sizes)}
        for path in range(count):
            i = 0
            while True:
                step = schedule.at(*self.keys[i][self.states[i][path]])
                j = places.get(self.sizes[i] + step.draw) if step.draw else None
                if j is None:
                    break
                passes[path] += price(step.draw)
                i = j
            right[path] = known[i, path]
        return right, passes

    def tune(
        self, price: Callable[[int], float], tolerance: float = 0.003, errors: Sequence[float] = ERRORS,
        vote: History | None = None,
    ) -> tuple[float, Schedule]:  # fmt: skip
        """The cheapest worth of an error whose schedule loses at most `tolerance` to all samples, and that schedule.

        With `vote`, the same questions in another view, what may be lost is counted from all samples in that view: a
        weighted vote of few may be as right as the plain vote of many. Needs labels in both.

        Judged by planning on one half of the questions and following on the other, both ways. Where none is as good as
        that, or none is cheaper than all samples in one batch, that batch is the schedule, and the worth infinite.
        Raises `InputError` for a `vote` that has no labels, or of other questions.
        """
        aim = self
        if vote is not None:
            if self.marks is None or vote.marks is None or not np.array_equal(self.questions, vote.questions):
                raise InputError(
                    "tune: to be as right as a vote needs marks of the same questions in both views, found none or "
                    "others; give marks, or leave the vote (--like-vote) out"
                )
            aim = vote
        total = int(self.questions.max()) + 1
        half = np.random.default_rng(0).permutation(total) % 2 == 0
        parts = (self.part(half), self.part(~half)) if total > 1 else (self, self)
        aims = (aim.part(half), aim.part(~half)) if total > 1 else (aim, aim)
        lost, passes = np.zeros(len(errors)), np.zeros(len(errors))
        for i, error in enumerate(errors):
            for mine, other, goal in ((*parts, aims[1]), (*parts[::-1], aims[0])):
                right, spent = other.follow(mine.plan(price, error), price)
                end = goal.agrees if goal.marks is None else goal.marks
                lost[i] += float((end[-1] - right).mean()) / 2
                passes[i] += float(spent.mean()) / 2
        # What is lost falls with the worth of an error; a single lucky one among them must not be taken for it.
        fit = isotonic_regression(lost, increasing=False).x
        every = self.sizes[-1]
        cheap = [i for i in np.argsort(passes, kind="stable") if fit[i] <= tolerance and passes[i] < price(every)]
        if cheap:
            error = errors[int(cheap[0])]
            return error, self.plan(price, error)
        return math.inf, self.plan(lambda b: price(b) if b == every else math.inf, 1e9)


def learn(
    questions: Sequence[Sequence[Sample]], correct: Sequence[Sequence[float]] | None = None, view: View | None = None,
    *, orders: int | None = None, sizes: Sequence[int] = SIZES, seed: int = 0,
) -> History:  # fmt: skip
    """History of questions with the same number k of samples each, seen through `view` (default: `Votes`).

    Schedules are planned for agreement with the choice after all k samples of the same order. `correct[q][i]`: whether
    sample i of question q is right, where labels are known: `History.tune` judges schedules by them then, a choice
    being as right as the samples with its answer are on average. `orders`: random orders of each question; default:
    some 10,000 in all. Raises `InputError` where there is nothing to learn from.
    """
    lengths = {len(a) for a in questions}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(f"history: found questions of {sorted(lengths)} samples, expected one number from 1 for all")
    k = lengths.pop()
    view = view or Votes()
    grid = (0, *(s for s in sizes if s < k), k)
    times = orders or max(4, min(60, 10_000 // len(questions)))
    rng = np.random.default_rng(seed)
    pairs: list[list[tuple[int, int]]] = [[] for _ in grid]
    agrees: list[list[float]] = [[] for _ in grid]
    marks: list[list[float]] = [[] for _ in grid]
    for q, samples in enumerate(questions):
        worth = None if correct is None else _worth(samples, correct[q])
        for _ in range(times):
            tally, done, chosen = Tally(), 0, []
            order = rng.permutation(k).tolist()
            for i, n in enumerate(grid):
                for s in order[done:n]:
                    tally.add(samples[s])
                done = n
                pairs[i].append(view.state(tally))
                chosen.append(view.choose(tally))
            for i, answer in enumerate(chosen):
                agrees[i].append(float(answer is not None and answer == chosen[-1]))
                marks[i].append(0.0 if worth is None else worth.get(answer, 0.0))
    keys, states = [], []
    for n, seen in zip(grid, pairs, strict=True):
        known = sorted(set(seen))
        place = {pair: j for j, pair in enumerate(known)}
        keys.append(tuple((n, *pair) for pair in known))
        states.append(np.array([place[pair] for pair in seen]))
    return History(
        grid, tuple(keys), tuple(states), np.array(agrees), None if correct is None else np.array(marks),
        np.repeat(np.arange(len(questions)), times), view,
    )  # fmt: skip


def _worth(samples: Sequence[Sample], correct: Sequence[float]) -> dict[str | None, float]:
    """How often samples with this answer are right."""
    marks: dict[str | None, list[float]] = {}
    for sample, right in zip(samples, correct, strict=True):
        if sample.answer is not None:
            marks.setdefault(sample.answer, []).append(right)
    return {answer: sum(m) / len(m) for answer, m in marks.items()}


def typical(k: int, questions: int = 300, seed: int = 0) -> list[list[Sample]]:
    """Answers of made-up questions, from easy to hopeless, to learn from where there is no history.

    Each question draws k answers from weights of a stick-breaking process whose concentration is log-uniform in
    (0.05, 20).
    """
    rng = np.random.default_rng(seed)
    found = []
    for concentration in np.exp(rng.uniform(np.log(0.05), np.log(20), questions)):
        sticks = rng.beta(1, concentration, 200)
        weights = sticks * np.concatenate([[1.0], np.cumprod(1 - sticks)[:-1]])
        drawn = rng.choice(200, size=k, p=weights / weights.sum())
        found.append([Sample(str(a)) for a in drawn])
    return found
