"""Pareto-guided simulated annealing with momentum: one chain, compiled.

An *epoch* starts from a plan of the archive and walks with one scalarisation while the temperature falls.

- Guidance: after one epoch for each named scalarisation, an epoch starts at an end of a wide gap of the front and
  weighs the objectives so that the gap's own direction is level: what is better than the chord fills the gap. A run of
  groups may be taken from another member, and plans that belong into the archive enter it even where the walk refuses
  them (compare AMOSA, which walks on to them: Bandyopadhyay, Saha, Maulik, Deb, "A simulated annealing-based
  multiobjective optimization algorithm: AMOSA", IEEE TEVC 12(3), 2008; tried here, that front was worse).
- Repetition: networks repeat their layers, and what is good in one is good in the others, but changes little alone. A
  run of groups is copied, placements and all, to its likes: runs of the same costs in the same surroundings, in all
  layers or in some that follow one another. Epochs of the named scalarisations begin with a sweep: the kinds of
  groups that take most time, each as a whole, on each placement.
- Momentum: what paid off lately, as (run of groups, placement), is tried on one of its likes or copied to many, and on
  runs a little wider or narrower; kinds of moves that paid off are drawn more often. Both decay, and are forgotten at
  each epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from qeil_compile.passes.partition.archive import Archive, aim, any_weights, below, draw, look, offer, scalar
from qeil_compile.passes.partition.kernel import State, change, exponential, load, objectives, undo
from qeil_compile.passes.partition.tables import Tables

#: Kinds of moves.
FLIP, SHIFT, RUN, SWAP, TWIN, FOLLOW, CROSS, COPY = range(8)
KINDS = 8
#: Temperature at the start of an epoch, as a relative change of the scalarised value, and ln of its share at the end.
_HOT, _COOLING = 0.2, -14.508657738524219
#: The same where an epoch starts from the front, which is good already.
_WARM, _SETTLING = 2e-3, -9.903487552536127
#: Successes that are remembered; by how much each success fades with every further one.
_MEMORY, _DECAY = 32, 0.9
#: Most groups that the runs of one move hold, and most runs: what a move costs must not grow with the graph.
_LONGEST, _RUNS = 2048, 128
#: "Placements" that stand for those of other plans: of the mate, of the groups from `source` on, of plan -3 - q.
_MATE, _SOURCE, _OTHERS = -1, -2, -3
#: How far around a group its likes must be like it.
_SURROUNDINGS = 2
#: Kinds of groups that a sweep moves, and how often it goes through them.
_SWEPT, _SWEEPS = 24, 2


class Walk(NamedTuple):
    """What a chain remembers between moves: `groups`/`places` of the move at hand with the places before, successes
    (`ring`: first group, length and placement of a run), and the credit of each kind of move. `span` int64[_RUNS, 4]
    holds the runs of groups (from, to, placement, source) that a move asks for; `tally` counts successes, marks and
    runs. `mate` is the plan at the other end of the gap. `heavy` [n] are running sums of each group's share of the
    time. Groups of one `kind` [n] have equal costs, and so have the groups around them: `alike` lists them, kind after
    kind; `heaviest` are the kinds that take most time.
    """

    groups: np.ndarray
    places: np.ndarray
    before: np.ndarray
    marked: np.ndarray
    span: np.ndarray
    ring: np.ndarray
    tally: np.ndarray
    credit: np.ndarray
    mate: np.ndarray
    heavy: np.ndarray
    kind: np.ndarray
    alike_ptr: np.ndarray
    alike: np.ndarray
    heaviest: np.ndarray


#: Places in `Walk.tally`.
_SUCCESSES, _MARK, _SPANS = range(3)


def new_walk(t: Tables) -> Walk:
    """Nothing remembered."""
    n, seconds = t.groups, _seconds(t)
    kind, alike_ptr, alike = _alike(t)
    sums = np.cumsum(seconds)
    return Walk(
        np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64),
        np.zeros((_RUNS, 4), np.int64), np.zeros((_MEMORY, 3), np.int64), np.zeros(3, np.int64), np.ones(KINDS),
        np.zeros(n, np.int64), sums / sums[-1], kind, alike_ptr, alike,
        np.argsort(-np.bincount(kind, weights=seconds), kind="stable")[:_SWEPT].astype(np.int64),
    )  # fmt: skip


def _alike(t: Tables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind of each group int64[n], where each kind begins, and the groups of all kinds int64[n]."""
    rows = np.concatenate([t.seconds, t.dynamic, t.phase[:, None]], axis=1)
    _, kind = np.unique(rows, axis=0, return_inverse=True)
    kind = kind.ravel().astype(np.int64)
    for _ in range(_SURROUNDINGS):
        many = len(kind) + 1
        before, after = np.concatenate([[0], kind[:-1] + 1]), np.concatenate([kind[1:] + 1, [0]])
        pairs = np.unique(before * many + kind, return_inverse=True)[1]
        kind = np.unique(pairs * many + after, return_inverse=True)[1].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(kind))]).astype(np.int64)
    return kind, starts, np.argsort(kind, kind="stable").astype(np.int64)


def _seconds(t: Tables) -> np.ndarray:
    """Mean time of each group over its placements and all runs, above 0, float64[n]."""
    seconds = np.where(t.allowed > 0, t.seconds, 0.0).sum(axis=1) / np.maximum(t.allowed.sum(axis=1), 1)
    return np.asarray(seconds * t.runs[t.phase] + 1e-30)


@njit(cache=True, nogil=True)
def _group(w: Walk, r: np.ndarray, n: int) -> int:
    """A group: any, or one by the time that it takes."""
    if draw(r) < 0.5:
        return below(r, n)
    return min(np.searchsorted(w.heavy, draw(r)), n - 1)


@njit(cache=True, nogil=True)
def _length(r: np.ndarray, most: int) -> int:
    """A length from 1 to `most`: each power of two half as likely as the one before, and something below it on top."""
    base = 1
    while 2 * base <= most and draw(r) < 0.5:
        base *= 2
    return min(base + below(r, base), most)


@njit(cache=True, nogil=True)
def _other(r: np.ndarray, p: int, places: int) -> int:
    """A placement other than p."""
    q = below(r, places - 1)
    return q + 1 if q >= p else q


@njit(cache=True, nogil=True)
def _ask(w: Walk, low: int, high: int, q: int, source: int = 0) -> None:
    """One more run of groups that the move puts on placement q."""
    k = w.tally[_SPANS]
    w.span[k, 0], w.span[k, 1], w.span[k, 2], w.span[k, 3] = low, high, q, source
    w.tally[_SPANS] = k + 1


@njit(cache=True, nogil=True)
def _copy(w: Walk, r: np.ndarray, g: int, far: int) -> None:
    """Ask for `far` groups from g on to be copied to their likes: to all, or to some that follow one another."""
    far = min(far, len(w.kind) - g)
    low, likes = w.alike_ptr[w.kind[g]], w.alike_ptr[w.kind[g] + 1] - w.alike_ptr[w.kind[g]]
    count = min(likes if draw(r) < 0.2 else 1 + below(r, likes), _RUNS, max(_LONGEST // far, 1))
    low += below(r, likes - count + 1)
    for k in range(low, low + count):
        h = w.alike[k]
        if h != g and h + far <= len(w.kind) and w.kind[h + far - 1] == w.kind[g + far - 1]:
            _ask(w, h, h + far, _SOURCE, g)


@njit(cache=True, nogil=True)
def _propose(
    place: np.ndarray, segment: np.ndarray, start: np.ndarray, twin: np.ndarray, places: int, others: int, w: Walk,
    r: np.ndarray, kind: int, repetition: bool,
) -> None:
    """Ask for a move of this kind; `others` is how many plans there are to take a run from."""
    n = len(place)
    w.tally[_SPANS] = 0
    g = _group(w, r, n)
    most = min(max(n // 2, 1), _LONGEST)
    if kind == SHIFT:
        for _ in range(256):  # to the border of a stage
            if g == 0 or place[g - 1] != place[g]:
                break
            g -= 1
        if g > 0:
            far = _length(r, min(most, 64))
            if draw(r) < 0.5:
                _ask(w, g, g + far, place[g - 1])
            else:
                _ask(w, g - far, g, place[g])
    elif kind == RUN:
        q = _other(r, place[g], places)
        if draw(r) < 0.5:
            first, segments = segment[g], len(start) - 1
            last = min(first + _length(r, max(segments // 2, 1)), segments)
            _ask(w, start[first], min(start[last], g + most), q)
        else:
            _ask(w, g, g + _length(r, most), q)
    elif kind == CROSS:
        base = 1
        while 2 * base <= min(n, _LONGEST) and draw(r) < 0.7:
            base *= 2
        _ask(w, g, g + base + below(r, base), _MATE if draw(r) < 0.5 else _OTHERS - below(r, others))
    elif kind == SWAP:
        h = _group(w, r, n)
        if place[g] != place[h]:
            far = _length(r, min(most, 64))
            _ask(w, g, g + far, place[h])
            _ask(w, h, h + far, place[g])
    elif kind == TWIN:
        far = _length(r, min(most, 64))
        if twin[g] >= 0:
            # Twins of neighbours are neighbours wherever phases are one model.
            _ask(w, twin[g], twin[g] + far, place[g])
    elif kind == FOLLOW:
        known = min(w.tally[_SUCCESSES], _MEMORY)
        if known > 0:
            k = below(r, known)
            g, far, q = w.ring[k, 0], w.ring[k, 1], w.ring[k, 2]
            if draw(r) < 0.3:  # a little wider, narrower or aside
                _ask(w, g + below(r, 5) - 2, g + far + below(r, 5) - 2, q)
            elif repetition and draw(r) < 0.5:
                _copy(w, r, g, far)
            else:  # a like elsewhere
                kind_of = w.kind[g]
                h = w.alike[w.alike_ptr[kind_of] + below(r, w.alike_ptr[kind_of + 1] - w.alike_ptr[kind_of])]
                _ask(w, h, h + far, q)
    elif kind == COPY:
        if draw(r) < 0.5:
            _copy(w, r, g, _length(r, min(most, 16)))
        else:
            _copy(w, r, start[segment[g]], min(start[segment[g] + 1] - start[segment[g]], _LONGEST))
    else:
        _ask(w, g, g + 1, _other(r, place[g], places))


@njit(cache=True, nogil=True)
def _gather(
    place: np.ndarray, allowed: np.ndarray, tied_ptr: np.ndarray, tied: np.ndarray, others: np.ndarray,
    slot: np.ndarray, w: Walk,
) -> int:
    """The groups that the runs asked for change, with all that are tied to them, into `groups` and `places`; one that
    may not go there stays. Runs may ask for the placements of the mate, of one of the plans `others`, or of other
    groups. Returns how many."""
    count, n = 0, len(place)
    w.tally[_MARK] += 1
    mark = w.tally[_MARK]
    for k in range(w.tally[_SPANS]):
        asked = w.span[k, 2]
        q, ahead = asked, w.span[k, 3] - w.span[k, 0]
        for g in range(max(w.span[k, 0], 0), min(w.span[k, 1], n)):
            if asked == _SOURCE:
                q = place[g + ahead]
            elif asked == _MATE:
                q = w.mate[g]
            elif asked <= _OTHERS:
                q = np.int64(others[slot[_OTHERS - asked], g])
            if place[g] == q or w.marked[g] == mark or allowed[g, q] == 0:
                continue
            able = True
            for i in range(tied_ptr[g], tied_ptr[g + 1]):
                able = able and allowed[tied[i], q] != 0
            if not able:
                continue
            w.marked[g] = mark
            w.groups[count], w.places[count], w.before[count] = g, q, place[g]
            count += 1
            for i in range(tied_ptr[g], tied_ptr[g + 1]):
                h = tied[i]
                if place[h] != q and w.marked[h] != mark:
                    w.marked[h] = mark
                    w.groups[count], w.places[count], w.before[count] = h, q, place[h]
                    count += 1
    return count


@njit(cache=True, nogil=True)
def _kind(w: Walk, r: np.ndarray, usable: np.ndarray, momentum: bool) -> int:
    """A kind of move that is `usable` [kinds], by its credit."""
    total = 0.0
    for k in range(KINDS):
        if usable[k]:
            total += w.credit[k] + 0.2 if momentum else 1.0
    left = draw(r) * total
    for k in range(KINDS):
        if usable[k]:
            left -= w.credit[k] + 0.2 if momentum else 1.0
            if left < 0:
                return k
    return FLIP


@njit(cache=True, nogil=True)
def _sweep(t: Tables, s: State, a: Archive, w: Walk, weights: np.ndarray, unit: np.ndarray, most: int) -> int:
    """Go through the heaviest kinds of groups and put all of a kind on each placement in turn; what is better for the
    weights stays. At most `most` plans are valued; returns how many were."""
    f, fresh, valued = np.zeros(4), np.zeros(4), 0
    objectives(t, s, f)
    for _ in range(_SWEEPS):
        better = False
        for c in w.heaviest:
            for q in range(t.seconds.shape[1]):
                w.tally[_SPANS] = 0
                for k in range(w.alike_ptr[c], min(w.alike_ptr[c + 1], w.alike_ptr[c] + _RUNS)):
                    _ask(w, w.alike[k], w.alike[k] + 1, q)
                count = _gather(s.place, t.allowed, t.tied_ptr, t.tied, a.places, a.slot, w)
                if count == 0:
                    continue
                if valued == most:
                    return valued
                change(t, s, w.groups, w.places, count)
                objectives(t, s, fresh)
                valued += 1
                if fresh[3] == 0:
                    offer(a, fresh, s.place)
                nearer = scalar(fresh, weights, unit) < scalar(f, weights, unit)
                if fresh[3] < f[3] or (fresh[3] == f[3] and nearer):
                    better = True
                    f[:] = fresh
                else:
                    undo(t, s, w.groups, w.before, count)
        if not better:
            break
    return valued


@njit(cache=True, nogil=True)
def anneal(
    t: Tables, s: State, a: Archive, w: Walk, r: np.ndarray, epochs: int, moves: int, first: int, guidance: bool,
    momentum: bool, repetition: bool,
) -> int:
    """Run epochs number `first` to `first + epochs - 1`, in each of which `moves` plans are valued (fewer where most
    moves change nothing); returns how many were.

    The archive must hold at least one plan.
    """
    names, places, valued = len(a.weights), t.seconds.shape[1], 0
    f, fresh, weights, unit = np.zeros(4), np.zeros(4), np.zeros(3), np.ones(3)
    usable = np.ones(KINDS, np.bool_)
    usable[FOLLOW], usable[CROSS], usable[COPY], usable[TWIN] = momentum, guidance, repetition, t.twin.max() >= 0
    place = np.zeros(len(s.place), np.int64)
    for epoch in range(first, first + epochs):
        look(a)
        unit[:] = a.span
        done, tries = 0, 0
        if epoch < names:
            weights[:] = a.weights[epoch]
            unit[:] = a.scale
            if repetition:
                # A plan that is best because it keeps one slow device busy is a dead end: no kind of group leaves it
                # for the better. From the fastest plan the sweep finds work to do at the same time.
                fastest = a.best_values[:, 0].argmin()
                place[:] = a.best_places[fastest if weights[2] > 0 else epoch]
                load(t, s, place)
                done = _sweep(t, s, a, w, weights, unit, moves)
            place[:] = a.best_places[epoch]
            w.mate[:] = a.places[a.slot[below(r, a.filled[0])]]
        elif guidance:
            here, there = aim(a, r, weights)
            place[:] = a.places[a.slot[here]]
            w.mate[:] = a.places[a.slot[there]]
        else:
            any_weights(r, weights)
            place[:] = s.place
        load(t, s, place)
        objectives(t, s, f)
        value = scalar(f, weights, unit)
        w.tally[_SUCCESSES] = 0
        w.credit[:] = 1.0
        heat = _HOT if epoch < names else _WARM
        cooling = exponential((_COOLING if epoch < names else _SETTLING) / max(moves - done, 1))
        valued += done
        while done < moves and tries < 4 * moves:
            tries += 1
            kind = _kind(w, r, usable, momentum)
            _propose(s.place, t.segment, t.segment_start, t.twin, places, a.filled[0], w, r, kind, repetition)
            count = _gather(s.place, t.allowed, t.tied_ptr, t.tied, a.places, a.slot, w)
            if count == 0:
                continue
            change(t, s, w.groups, w.places, count)
            objectives(t, s, fresh)
            done += 1
            valued += 1
            heat *= cooling
            after = scalar(fresh, weights, unit)
            delta = after - value
            if fresh[3] > 0 or f[3] > 0:
                accepted = fresh[3] < f[3] or (fresh[3] == f[3] and delta <= 0)
            else:
                accepted = delta <= 0 or draw(r) < exponential(-delta / heat)
            entered = False
            if fresh[3] == 0 and (accepted or guidance):
                entered = offer(a, fresh, s.place)
            if accepted:
                # A new point of the front is worth more than a step on the way to one.
                gain = 4.0 if entered else 1.0 if delta < 0 else 0.0
                w.credit[kind] = _DECAY * w.credit[kind] + (1.0 - _DECAY) * gain
                if (delta < 0 or entered) and w.span[0, 2] >= 0:
                    k = w.tally[_SUCCESSES] % _MEMORY
                    w.ring[k, 0] = max(w.span[0, 0], 0)
                    w.ring[k, 1], w.ring[k, 2] = w.span[0, 1] - w.ring[k, 0], w.span[0, 2]
                    w.tally[_SUCCESSES] += 1
                value = after
                f[:] = fresh
            else:
                w.credit[kind] *= 0.999
                undo(t, s, w.groups, w.before, count)
    return valued
