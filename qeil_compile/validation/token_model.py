"""The energy equation and the time of one decode step, and their joint fit on serving runs.

For a step of b tokens on n GPUs that takes t seconds, with every rate as a share of its roof (u = rate / roof):

    E/token = n t / b * TDP * min(1, c_const busy + c_wait (1 - busy) + c_flop u_flop
                                     + c_weight u_weight + c_value u_value + c_cache u_cache + c_act u_act)

which is E = t [P_const + W-rate e_f + Q-rate e_m] with e_f = c_flop TDP / P, e_m = c TDP / B and a price of bytes per
kind of operator: weights by stored byte and by value (16 bits each, once on the chip, whatever they are stored in; a
multiple of that where every block of weights has its own scale), the cache (attention kernels), and activations
(norms, residuals, routing; as traversals of hidden size x layers). `busy` is the share of a step in which a GPU has
experts to read while the others wait for the fullest one. The power is capped at TDP: what a board enforces. No
temperature is in the data, so Phi is part of the prices. As shares, the prices carry over to a GPU without runs.

    t = layers (s_layer + s_sync [n > 1]) + s_token b
        + weights / (busy n eta_weight B) + cache b / (n eta_cache B) + W b / (n eta_flop P)

is the roofline with a launch time, its parts in sequence as the kinds are (weights, attention, arithmetic). A recurrent
state is streamed like weights, in both equations.
The arithmetic of prompts is shared by the tokens of an answer: W per token = 2 params (1 + prompt/output) + attention.
Prompt lengths are not published: one positive mean per task, common to the energy and the time, is fitted.
Images and frames of a prompt count as tokens of it.

Fit: least squares on the logarithms of energy and time together (relative errors, soft L1, all parameters positive),
with a weak pull to a centre, log-normal: it only matters for what the runs cannot tell (say, fp8 with no fp8 model
in the fit part). The centre of c_weight is a published coefficient, those of the efficiencies are published ranges; the
others are assumed, with the reason beside each. Rows with a measured time hardly depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
from scipy.optimize import least_squares, minimize_scalar

from qeil_compile.validation.token_runs import Runs

#: name: (centre, log standard deviation of the pull to it, upper bound)
ENERGY = {
    "c_const": (0.43, inf, 1.0),  # of TDP: SMs clocked, HBM and links awake; about 300 W of an H100
    "c_wait": (0.17, 0.5, 1.0),  # waiting in a collective: about 120 W of an H100
    "c_flop": (0.64, 0.4, inf),  # 0.45 pJ/FLOP on an H100: (TDP - P_const) at nearly full rate
    "c_weight": (0.215, 0.3, inf),  # 45 pJ/B: HBM device 31 pJ/B (O'Connor, MICRO 2017) and its PHY
    "c_value": (0.29, inf, inf),  # 120 pJ per 16-bit value, on the chip
    "c_cache": (0.72, inf, inf),  # 150 pJ/B, attention included
    "c_act": (24.0, inf, inf),  # about thirty traversals of 150 pJ/B per layer
    "x_scaled": (1.5, 0.5, inf),  # c_value of weights with a scale per block, relative
}
TIME = {
    "s_layer": (60e-6, inf, inf),  # half a dozen kernels of about 10 us
    "s_sync": (30e-6, 0.7, inf),  # two small all-reduces over NVLink
    "s_token": (20e-6, 1.0, inf),  # host work per sequence and step: sampling, bookkeeping
    "eta_weight": (0.8, 0.2, 1.0),  # streaming kernels reach 70-93 % of HBM
    "eta_cache": (0.6, 0.4, 1.0),
    "eta_flop": (0.6, 0.25, 1.0),  # 59-77 % on server GPUs (NeuSight data)
    "x_fp8": (1.3, 0.3, inf),  # roofs of fp8 kernels, relative: less of the peak is reached
    "x_fp8_scaled": (1.5, 0.5, inf),  # the same for weights with a scale per block, on top
}
#: Candidate forms, simplest first, and the energy terms that they drop.
FORMS: dict[str, tuple[str, ...]] = {"nobody waits": ("c_wait",), "GPUs wait for the fullest": ()}
PROMPT = "prompt "  #: prefix of the parameters that are mean prompt lengths
PROMPT_SPREAD = 2.0  # next to no pull: the length is between a seventh and seven times the assumed one
FREE = 10.0  # spread of what has no pull; finite, so that what the runs cannot tell stays at its centre
REACH = 4.0  # bounds of every parameter: exp(-4) ... exp(4) times its centre


@dataclass(frozen=True)
class Fit:
    """Fitted parameters by name; `prompt TASK` are mean prompt lengths [tokens]."""

    form: str
    values: Mapping[str, float]

    def prompts(self, runs: Runs, assumed: Mapping[str, float], timed: Runs | None = None) -> np.ndarray:
        """Prompt length of each run [tokens].

        A task outside the fit gets its assumed length or, where step times of some runs of it are given (`timed`), the
        one length that explains those times best: times only, never energies.
        """
        table = {t: self.values.get(PROMPT + t, assumed.get(t, assumed["other"])) for t in map(str, set(runs.task))}
        if timed is not None:
            for task in [t for t in table if PROMPT + t not in self.values]:
                table[task] = _prompt_of_times(self.values, timed.take(timed.task == task))
        return np.array([table[t] for t in runs.task])


def cache_bytes(runs: Runs, prompt: np.ndarray) -> np.ndarray:
    """Bytes of cache and state that one token reads, in the middle of an answer."""
    context = prompt + runs.output / 2
    seen = np.where(runs.window > 0, np.minimum(context, runs.window), context)
    return np.asarray(runs.cache_global * context + runs.cache_local * seen)


def step_seconds(p: Mapping[str, float], runs: Runs, prompt: np.ndarray) -> np.ndarray:
    """Modelled time of one decode step [s]."""
    cached = cache_bytes(runs, prompt)
    slow = np.where(runs.fp8, p["x_fp8"], 1.0)
    scaled = np.where(runs.scaled > 0, p["x_fp8_scaled"], 1.0)
    launch = runs.layers * (p["s_layer"] + p["s_sync"] * (runs.gpus > 1)) + p["s_token"] * runs.batch
    per_gpu = runs.batch / runs.gpus
    read = runs.weights / runs.busy / runs.gpus / (p["eta_weight"] * runs.bandwidth) * slow * scaled
    attend = (cached / p["eta_cache"] + runs.state / p["eta_weight"]) * per_gpu / runs.bandwidth
    flops = 2 * runs.params * (1 + prompt / runs.output)
    return np.asarray(launch + read + attend + flops * per_gpu * slow / (p["eta_flop"] * runs.peak))


def token_joules(p: Mapping[str, float], runs: Runs, prompt: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Energy per output token [J] of steps that take `seconds`."""
    rate = runs.batch / seconds / runs.gpus  # tokens per second and GPU
    cached = cache_bytes(runs, prompt)
    answers = 1 + prompt / runs.output
    flop = (2 * runs.params * answers + runs.attention * cached) * rate / runs.peak
    bandwidth = runs.bandwidth
    weight = runs.weights / seconds / runs.gpus / bandwidth
    cache, state = cached * rate / bandwidth, runs.state * rate / bandwidth
    values = 2 * (runs.values + (p["x_scaled"] - 1) * runs.scaled) / seconds / runs.gpus / bandwidth
    act = 2 * runs.width * answers * rate / bandwidth
    power = p["c_const"] * runs.busy + p.get("c_wait", p["c_const"]) * (1 - runs.busy) + p["c_flop"] * flop
    power = power + p["c_weight"] * (weight + state) + p["c_value"] * (values + state)
    power = power + p["c_cache"] * cache + p["c_act"] * act
    return np.asarray(np.minimum(power, 1.0) * runs.tdp * runs.gpus * seconds / runs.batch)


def _prompt_of_times(p: Mapping[str, float], runs: Runs) -> float:
    """Prompt length in 10 ... 1e5 tokens with the least mean error of log step time over `runs`."""

    def error(x: float) -> float:
        prompt = np.full(len(runs), np.exp(x))
        return float(np.mean(np.abs(np.log(step_seconds(p, runs, prompt) / runs.mean))))

    return float(np.exp(minimize_scalar(error, bounds=(log(10), log(1e5)), method="bounded").x))


def _priors(form: str, tasks: Sequence[str], assumed: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Centre, spread and upper bound of each parameter of a form."""
    prompts = {PROMPT + t: (assumed.get(t, assumed["other"]), PROMPT_SPREAD, inf) for t in tasks}
    return {k: v for k, v in ENERGY.items() if k not in FORMS[form]} | TIME | prompts


def fit(runs: Runs, form: str, clock: str, assumed: Mapping[str, float], start: Fit | None = None) -> Fit:
    """Energy for measured step times, and the mean step time, fitted together.

    Args:
        runs: N runs of the fit part.
        form: a key of `FORMS`.
        clock: "median" or "mean": the measured time that the energy equation takes.
        assumed: prompt length per task where the fit starts [tokens].
        start: where to begin; None begins at the centres.
    """
    tasks = sorted(set(map(str, runs.task)))
    priors = _priors(form, tasks, assumed)
    names, (centre, spread, top) = list(priors), np.array(list(priors.values())).T
    pull = 0.1 * np.sqrt(len(runs) / 100) / np.minimum(spread, FREE)
    centre, low = np.log(centre), np.log(centre) - REACH
    high = np.minimum(np.log(top), centre + REACH)
    task_of = np.array([tasks.index(t) for t in runs.task])
    measured = np.log(np.concatenate([runs.energy, runs.mean]))

    def residuals(x: np.ndarray) -> np.ndarray:
        p = dict(zip(names, np.exp(x), strict=True))
        prompt = np.exp(x[-len(tasks) :])[task_of]
        model = [token_joules(p, runs, prompt, getattr(runs, clock)), step_seconds(p, runs, prompt)]
        return np.concatenate([np.log(np.concatenate(model)) - measured, pull * (x - centre)])

    first = np.log([(start.values if start else {}).get(k, v[0]) for k, v in priors.items()])
    first = np.clip(first, low + 1e-6, high - 1e-6)  # scipy wants the start inside the bounds
    found = least_squares(
        residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.05, max_nfev=300, ftol=1e-6, xtol=1e-6
    )
    return Fit(form, dict(zip(names, map(float, np.exp(found.x)), strict=True)))


def choose_form(runs: Runs, clock: str, assumed: Mapping[str, float], folds: int = 5) -> str:
    """The form with the least mean error on families left out of the fit part, in `folds` groups."""
    families = sorted(set(runs.family))
    errors = {form: np.zeros(len(runs)) for form in FORMS}
    for form, error in errors.items():
        start = fit(runs, form, clock, assumed)
        for k in range(min(folds, len(families)) if len(families) > 1 else 0):
            out = np.isin(runs.family, families[k::folds])
            inner, rest = fit(runs.take(~out), form, clock, assumed, start), runs.take(out)
            prompt = inner.prompts(rest, assumed, timed=rest)
            error[out] = token_joules(inner.values, rest, prompt, getattr(rest, clock)) / rest.energy - 1
    return min(FORMS, key=lambda form: float(np.mean(np.abs(errors[form]))))
