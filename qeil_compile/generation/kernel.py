"""The compiled inner loops of sampling: one row of logits at a time, so that a row's result depends on nothing else.

A row is read a few times at the speed of the processor's cache, in blocks of 64 that vectorise. The maximum of each
block tells which blocks can hold a token that passes a filter: only those are looked at, and no row is ever sorted.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

#: Logits a block: a constant, so that loops over one are unrolled.
BLOCK = 64
#: Tokens that are few enough to sort.
_FEW = 1024
# A float32 as 32 bits: without the sign, and the exponent that says infinite or not a number.
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_LEAST_KEY = np.int32(-0x80000000)
_SIGN = np.int32(31)
_LOG2E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has trailing zeros, so that its product with a small whole number is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
#: exp of less is 0 here: about where normal float32 numbers end.
_LEAST_EXPONENT = np.float32(-87.0)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_NO_FLOOR = np.float32(-np.inf)


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits; numba has no bit cast of a scalar."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0 to about 1e-7 of its value, 0 below -87. Plain arithmetic (Cephes), so that loops vectorise."""
    bounded = x if x > _LEAST_EXPONENT else _LEAST_EXPONENT
    n = np.floor(bounded * _LOG2E + _HALF)
    r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = _as_float((np.int32(n) + np.int32(127)) << np.int32(23))
    value = (p * (r * r) + r + _ONE) * power
    return value if x >= _LEAST_EXPONENT else _ZERO


@njit(cache=True, nogil=True)
def _read(row: np.ndarray, x: np.ndarray, peaks: np.ndarray) -> bool:
    """Write the maximum of each block of a row [vocab]; False where one is not finite.

    x [blocks, 64] is the row if the vocabulary fills its blocks; if not it becomes a copy, filled up with -infinity.
    Maxima are taken of the bits: integers vectorise and lose no NaN, and have the order of floats once those of the
    negative ones are flipped.
    """
    bits = x.view(np.int32)
    if len(row) != x.size:
        flat = x.reshape(-1)
        flat[: len(row)] = row
        flat[len(row) :] = _NO_FLOOR
    worst = np.int32(0)
    for b in range(len(peaks)):
        key, bad = _LEAST_KEY, np.int32(0)
        for i in range(BLOCK):
            value = bits[b, i]
            order = value ^ ((value >> _SIGN) & _MAGNITUDE)
            key = order if order > key else key
            size = value & _MAGNITUDE
            bad = size if size > bad else bad
        peaks[b] = _as_float(key ^ ((key >> _SIGN) & _MAGNITUDE))
        if b * BLOCK + BLOCK <= len(row):
            worst = bad if bad > worst else worst
    for i in range(len(row) % BLOCK):
        size = bits[-1, i] & _MAGNITUDE
        worst = size if size > worst else worst
    return bool(worst < _INFINITE)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _weigh_block(x: np.ndarray, b: int, inverse: np.float32, top: np.float32, least: np.float32) -> np.float32:
    """Sum of exp(z - top) over the z = x * inverse in block b that are >= least."""
    mass = _ZERO
    for i in range(BLOCK):
        z = x[b, i] * inverse
        mass += _exp(z - top) if z >= least else _ZERO
    return mass


@njit(cache=True, nogil=True)
def _weigh(
    x: np.ndarray, peaks: np.ndarray, inverse: np.float32, top: np.float32, least: np.float32, masses: np.ndarray
) -> float:
    """Sum of exp(z - top) over all z >= least; `masses` gets the sums of the blocks."""
    mass = 0.0
    for b in range(len(peaks)):
        masses[b] = _weigh_block(x, b, inverse, top, least) if peaks[b] >= least else _ZERO
        mass += masses[b]
    return mass


@njit(cache=True, nogil=True)
def _count(x: np.ndarray, peaks: np.ndarray, inverse: np.float32, least: np.float32) -> int:
    """Number of z >= least."""
    count = 0
    for b in range(len(peaks)):
        if peaks[b] >= least:
            here = np.int32(0)
            for i in range(BLOCK):
                here += np.int32(x[b, i] * inverse >= least)
            count += int(here)
    return count


@njit(cache=True, nogil=True)
def _argmax(values: np.ndarray) -> int:
    """The first place of the largest value. (numpy's functions take numba seconds to compile, loops do not.)"""
    best = 0
    for i in range(1, len(values)):
        if values[i] > values[best]:
            best = i
    return best


@njit(cache=True, nogil=True)
def _gather(
    x: np.ndarray, peaks: np.ndarray, inverse: np.float32, low: np.float32, high: np.float32,
    ids: np.ndarray, values: np.ndarray,
) -> int:  # fmt: skip
    """Write the numbers and the values of the tokens with low <= z < high, in order; how many."""
    count = 0
    for b in range(len(peaks)):
        if peaks[b] < low:
            continue
        here = np.int32(0)  # counting vectorises, and most blocks hold nothing of a narrow range
        for i in range(BLOCK):
            here += np.int32(x[b, i] * inverse >= low) - np.int32(x[b, i] * inverse >= high)
        for i in range(BLOCK if here else 0):
            z = x[b, i] * inverse
            if low <= z < high:
                ids[count], values[count] = b * BLOCK + i, z
                count += 1
    return count


@njit(cache=True, nogil=True)
def _crossing(
    x: np.ndarray, vocab: int, peaks: np.ndarray, inverse: np.float32, top: np.float32, target: float,
    by_mass: bool, masses: np.ndarray, ids: np.ndarray, values: np.ndarray,
) -> Any:  # fmt: skip
    """Of the fewest largest z that reach `target` together: the least, how many of them equal it, how many z do.

    What is added up is exp(z - top) or the count. Thresholds far up touch few blocks, so the search comes down from
    the top in growing steps, then halves, and sorts what is left when that is little.
    """
    high, above, above_count = np.float32(np.inf), 0.0, 0
    width = _ONE
    while True:
        low = top - width
        count = _count(x, peaks, inverse, low)
        sum_low = _weigh(x, peaks, inverse, top, low, masses) if by_mass else float(count)
        if sum_low >= target or count == vocab:
            break
        high, above, above_count = low, sum_low, count
        width *= np.float32(2.0)
    while count - above_count > _FEW:
        middle = low + (min(high, top) - low) * _HALF
        if not low < middle < high:
            break
        found = _count(x, peaks, inverse, middle)
        sum_middle = _weigh(x, peaks, inverse, top, middle, masses) if by_mass else float(found)
        if sum_middle >= target:
            low, count = middle, found
        else:
            high, above, above_count = middle, sum_middle, found
    found = _gather(x, peaks, inverse, low, high, ids, values)
    ordered = np.sort(values[:found])
    value, kept = high, 0
    for i in range(found - 1, -1, -1):
        kept = kept + 1 if ordered[i] == value else 1
        value = ordered[i]
        above += _exp(value - top) if by_mass else 1.0
        if above >= target:
            break
    ties = 0
    for i in range(found):
        ties += ordered[i] == value
    return value, kept, ties


@njit(cache=True, nogil=True)
def _drop_ties(
    x: np.ndarray, peaks: np.ndarray, inverse: np.float32, top: np.float32, value: np.float32, kept: int,
    masses: np.ndarray,
) -> Any:  # fmt: skip
    """Keep the first `kept` of the tokens equal to `value`: the number of the last of them, and the new total mass."""
    last, total = 0, 0.0
    for b in range(len(peaks)):
        if peaks[b] >= value:
            dropped, mass = False, _ZERO
            for i in range(BLOCK):
                z = x[b, i] * inverse
                if z == value and kept == 0:
                    dropped = True
                elif z >= value:
                    mass += _exp(z - top)
                    if z == value:
                        kept -= 1
                        last = b * BLOCK + i
            if dropped:
                masses[b] = mass
        total += masses[b]
    return last, total


@njit(cache=True, nogil=True)
def _draw(
    x: np.ndarray, peaks: np.ndarray, inverse: np.float32, top: np.float32, masses: np.ndarray, total: float,
    least: np.float32, last: int, uniform: float,
) -> int:  # fmt: skip
    """The token at `uniform` of the mass, in the order of the tokens' numbers.

    Only z > least count, and z == least up to number `last`. In that order a small error of the logits moves the
    bounds between tokens by as little; by rank it could swap two likely ones.
    """
    target, block = uniform * total, -1
    for b in range(len(masses)):
        if masses[b] > 0:
            block = b
            if target < masses[b]:
                break
            target -= masses[b]
    token = -1
    for i in range(BLOCK):
        z = x[block, i] * inverse
        if z < least or (z == least and block * BLOCK + i > last):
            continue
        weight = _exp(z - top)
        if weight > 0:
            token = block * BLOCK + i
            target -= weight
            if target < 0:
                break
    if token < 0:  # the sum of the block was a rounding error
        block = _argmax(peaks)
        token = block * BLOCK + _argmax(x[block])
    return token


@njit(cache=True, nogil=True)
def _choose(
    x: np.ndarray, vocab: int, peaks: np.ndarray, masses: np.ndarray, total: float, raw: bool,
    ids: np.ndarray, values: np.ndarray,
    inverse: np.float32, top_k: int, top_p: float, min_p: float, uniform: float,
) -> int:  # fmt: skip
    """A token of penalised logits x [blocks, 64], z = x * inverse, of which `peaks` are the maxima.

    `raw`: `masses` and `total` are already those of all z. `ids` and `values` are room to work in.
    """
    top = peaks[_argmax(peaks)]
    least, last, kept, ties = _NO_FLOOR, x.size, 0, 0
    if 0 < top_k < vocab:
        least, _, _ = _crossing(x, vocab, peaks, inverse, top, float(top_k), False, masses, ids, values)
        raw = False
    if top_p < 1:
        if not raw:
            total = _weigh(x, peaks, inverse, top, least, masses)
        floor = least
        least, kept, ties = _crossing(x, vocab, peaks, inverse, top, top_p * total, True, masses, ids, values)
        if least < floor:  # a share close to 1, and a sum that rounding left below it
            least, kept, ties = floor, 0, 0
        raw = False
    if min_p > 0 and np.float32(top + log(min_p)) > least:
        least, kept, ties = np.float32(top + log(min_p)), 0, 0
        raw = False
    if not raw:
        total = _weigh(x, peaks, inverse, top, least, masses)
    if kept < ties:
        last, total = _drop_ties(x, peaks, inverse, top, least, kept, masses)
    return _draw(x, peaks, inverse, top, masses, total, least, last, uniform)


@njit(cache=True, nogil=True)
def _penalise(row: np.ndarray, x: np.ndarray, peaks: np.ndarray, tokens: np.ndarray, penalty: np.float32) -> None:
    """Penalise the logits of `tokens` in x [blocks, 64], from those of `row` [vocab], and mend the peaks."""
    for token in tokens:
        if token >= len(row):
            continue
        b, i, old = token // BLOCK, token % BLOCK, row[token]
        new = old * penalty if old < 0 else old / penalty
        x[b, i] = new
        if new > peaks[b]:
            peaks[b] = new
        elif old == peaks[b]:
            peaks[b] = x[b, _argmax(x[b])]


@njit(cache=True, nogil=True)
def _likeliest(
    x: np.ndarray, vocab: int, peaks: np.ndarray, masses: np.ndarray, ids: np.ndarray, values: np.ndarray,
    tokens: np.ndarray, logits: np.ndarray,
) -> None:  # fmt: skip
    """The tokens of the largest logits, largest first and lower numbers first among equals."""
    top = peaks[_argmax(peaks)]
    least, _, _ = _crossing(x, vocab, peaks, _ONE, top, float(len(tokens)), False, masses, ids, values)
    count = _gather(x, peaks, _ONE, least, np.float32(np.inf), ids, values)
    for rank in range(len(tokens)):
        best = _argmax(values[:count])
        tokens[rank], logits[rank] = ids[best], values[best]
        values[best] = _NO_FLOOR


@njit(cache=True, nogil=True)
def philox(seed: np.uint64, a: int, b: int, c: int) -> float:
    """A uniform number in [0, 1) of 53 bits from Philox4x32-10, counter (a, b, c, 0), key `seed`.

    A number that depends on its coordinates alone (Salmon et al., Parallel random numbers: as easy as 1, 2, 3).
    """
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = np.uint64(a) & low, np.uint64(b) & low, np.uint64(c) & low, np.uint64(0)
    k0, k1 = seed & low, seed >> shift
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return float(((c0 << shift) | c1) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, nogil=True)
def sample_rows(
    logits: np.ndarray, source: np.ndarray, rows: np.ndarray, prompt: np.ndarray, sample: np.ndarray,
    position: np.ndarray, seen: np.ndarray, seen_count: np.ndarray, seed: np.uint64,
    penalty: np.float32, temperature: np.float32, top_k: int, top_p: float, min_p: float,
    tokens: np.ndarray, logprobs: np.ndarray, best: np.ndarray, best_logprobs: np.ndarray,
) -> int:  # fmt: skip
    """Choose a token for each of some rows; the place of the first whose logits are not finite, or -1.

    logits float32 [any, vocab]; the r-th row is row `rows[r]` of the batch and reads `logits[source[r]]`. `prompt`,
    `sample`, `position` int64 [batch] are the coordinates of its random number, `seen[row, :seen_count[row]]` its
    tokens for the penalty. Writes `tokens` int64 [rows], `logprobs` float64 [rows] of the raw logits, and the
    likeliest tokens `best` int64 and `best_logprobs` float64 [rows, m].
    """
    vocab = logits.shape[1]
    blocks = (vocab + BLOCK - 1) // BLOCK
    whole = vocab == blocks * BLOCK
    peaks, masses = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    copy = np.empty((0 if whole and penalty == 1 else blocks, BLOCK), np.float32)
    ids, values = np.empty(blocks * BLOCK, np.int64), np.empty(blocks * BLOCK, np.float32)
    for r in range(len(rows)):
        row, number = logits[source[r]], rows[r]
        x = row.reshape(-1, BLOCK) if whole else copy
        if not _read(row, x, peaks):
            return r
        if len(best[r]):
            _likeliest(x, vocab, peaks, masses, ids, values, best[r], best_logprobs[r])
        top = peaks[_argmax(peaks)]
        total = _weigh(x, peaks, _ONE, top, _NO_FLOOR, masses)
        log_total = float(top) + log(total)
        for i in range(len(best[r])):
            best_logprobs[r, i] -= log_total
        if penalty != 1:
            if whole:
                for b in range(blocks):
                    for i in range(BLOCK):
                        copy[b, i] = x[b, i]
                x = copy
            _penalise(row, x, peaks, seen[number, : seen_count[number]], penalty)
        if temperature == 0:
            block = _argmax(peaks)
            token = block * BLOCK + _argmax(x[block])
        else:
            inverse = _ONE / temperature
            for b in range(blocks):
                peaks[b] *= inverse
            token = _choose(
                x, vocab, peaks, masses, total, penalty == 1 and temperature == 1, ids, values,
                inverse, top_k, top_p, min_p, philox(seed, position[number], sample[number], prompt[number]),
            )  # fmt: skip
        tokens[r], logprobs[r] = token, row[token] - log_total
    return -1


@njit(cache=True, nogil=True)
def remember(seen: np.ndarray, seen_count: np.ndarray, row: int, tokens: np.ndarray) -> None:
    """Add `tokens` to those of a row, each once."""
    for token in tokens:
        known = False
        for i in range(seen_count[row]):
            if seen[row, i] == token:
                known = True
                break
        if not known:
            seen[row, seen_count[row]] = token
            seen_count[row] += 1
