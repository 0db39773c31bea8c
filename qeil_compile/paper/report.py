"""The report: one document of what was computed and measured, and the same as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.report import Document
from qeil_compile.report import figures as plan_figures
from qeil_compile.sampling import Interval

from . import figures, words
from .ablation import Worth
from .cascade import FULL
from .measure import Measured
from .plans import CASCADE, MEANING, OBJECTIVES, PGSAM, STANDARD
from .prices import STEPS
from .quality import Answers, Text
from .run import PLATFORM, Instance, Paper, Row, Share
from .tasks import Task

#: Family and task whose plan is drawn for each target, where it is among the instances.
_EXAMPLE = ("Llama-3.2 1B", "GSM8K")


@dataclass(frozen=True)
class Results:
    """Everything of one run of the bench."""

    paper: Paper
    tasks: Sequence[Task]
    environment: Mapping[str, Any]
    answers: Sequence[Answers] = ()
    texts: Sequence[Text] = ()
    measured: Sequence[Measured] = ()
    not_measured: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain data; every table says how its figures were found. What does not exist is null: JSON has no NaN."""
        p = self.paper
        data = {
            "bench": "paper",
            "quick": p.settings.quick,
            "environment": dict(self.environment),
            "tasks": [asdict(t) for t in self.tasks],
            "plans": dict(MEANING),
            "rows": [_row_json(r) for r in p.rows],
            "over the standard": [asdict(s) for s in p.shares],
            "split": [{"step": name} | asdict(s) for name, s in p.split],
            "reasons": {t.name: words.reasons(p, t.name) for t in p.targets},
            "cascade": [{"rho": rho} | asdict(d) for (_, rho), d in p.drawn.items()],
            "ablation": {t: [asdict(w) for w in of] for t, of in p.ablation.items()},
            "sensitivity": {t: [asdict(h) | {"flips": h.flips} for h in of] for t, of in p.sensitivity.items()},
            "quality": [asdict(a) | {"watts": a.watts, "answers": "measured"} for a in self.answers],
            "texts": [asdict(t) | {"label": "measured"} for t in self.texts],
            "measured": [asdict(m) | {"label": "measured"} for m in self.measured],
            "not measured": list(self.not_measured),
            "seconds": dict(p.seconds),
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = _plain(data)
        return plain


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, tuples as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_json(r: Row) -> dict[str, Any]:
    data = asdict(r)
    if r.spent is not None:
        data["spent"] |= {"power": r.spent.power, "tokens_per_joule": r.spent.tokens_per_joule}
    return data


def document(results: Results) -> Document:
    """The whole report."""
    p = results.paper
    made = Document("Placement, sampling and energy of language models")
    _head(made, results)
    _headline(made, p)
    for target in p.targets:
        _target(made, p, target.name)
    _cascade(made, p)
    for name, of in p.ablation.items():
        _ablation(made, name, of)
    _sensitivity(made, p)
    _quality(made, results)
    _measured(made, results)
    _tail(made, results)
    return made


def _head(made: Document, results: Results) -> None:
    p, e = results.paper, results.environment
    targets = ", ".join(f"{t.name} ({t.title})" for t in p.targets)
    models = len({i.model.name for i in p.instances if not i.extra})
    made.paragraph(
        f"{models} language models on {len(results.tasks)} workloads, under {len(MEANING)} plans, on "
        f"{len(p.targets)} machines: {targets}. No quality is claimed for a model that did not run."
    )
    made.bullets([
        "modelled: computed by the cost model from a device's profile; calibrated: with coefficients fitted on this "
        "machine; measured: read from a clock or a counter in this run; emulated: another engine stood in",
        *(f"{name}: {what}" for name, what in MEANING.items()),
    ])  # fmt: skip
    made.table(
        ("workload", "prompt [tokens]", "answer [tokens]", "parts", "samples of a question [1]", "without sampling"),
        [[t.name, t.mean.prompt, t.mean.answer, ", ".join(f"{x.prompt}+{x.answer}" for x in t.parts), t.samples,
          {"vote": "the cascade", "options": f"{t.options} options scored", "text": "nothing: all samples"}[t.kind]]
         for t in results.tasks],
        caption="Workloads: lengths of the public evaluation sets, in parts of equal size by length.",
    )  # fmt: skip
    made.paragraph(
        f"{e['date']}, commit {e['commit']}, {e['cpu']} with {e['usable_cores']} usable cores; "
        + ", ".join(f"{n} {v}" for n, v in e["versions"].items()) + "."
    )  # fmt: skip


def _headline(made: Document, p: Paper) -> None:
    made.heading("Against the published figures")
    names = [t.name for t in p.targets]
    first = PLATFORM if PLATFORM in names else names[0]
    made.paragraph(words.headline(p, first))
    made.table(words.GOAL_COLUMNS, words.goal_rows(p, first), words.goal_kinds(p, first),
               caption=f"{first}: over the standard, mean of all instances with 95 % interval "
               f"({words.label(p, first)}).")  # fmt: skip
    drawn = figures.savings([s for s in p.shares if not s.task])
    made.figure(drawn, "Energy and latency of every plan over the standard's, all workloads and families.", "savings")


def _against(made: Document, p: Paper, target: str) -> None:
    """Savings of one target: in words, by step, and by workload."""
    made.paragraph(words.headline(p, target))
    made.bullets(words.reasons(p, target))
    made.table(
        ("plan", "step", "energy [%]", "latency [%]", "IPW [1]", "instances [1]"),
        [[s.plan, name, *_changes(s)] for name, s in p.split if s.target == target],
        caption=f"Where it comes from: each step over the one before ({words.label(p, target)}).",
    )
    mine = [s for s in p.shares if s.target == target and s.task and s.plan != STANDARD]
    _by_task(made, mine, words.label(p, target))


def _by_task(made: Document, shares: Sequence[Share], label: str) -> None:
    names = list(dict.fromkeys(s.task for s in shares))
    of = {(s.plan, s.task): s for s in shares}
    columns = [f"{n}: {what} [%]" for n in names for what in ("energy", "latency")]
    rows = []
    for plan in dict.fromkeys(s.plan for s in shares):
        cells: list[object] = [plan]
        for n in names:
            s = of.get((plan, n))
            cells += ["-", "-"] if s is None else [words.percent(s.energy.value), words.percent(s.latency.value)]
        rows.append(cells)
    made.table(("plan", *columns), rows, caption=f"By workload, over the standard ({label}).")


def _changes(s: Share) -> list[object]:
    return [words.percent(s.energy.value), words.percent(s.latency.value), f"{s.ipw.value:.3f}", s.instances]


_SPENT = ("model", "plan", "energy [J]", "latency [s]", "power [W]", "tokens/J [1/J]", "under-utilisation [1]",
          "gap [%]", "rounds [1]", "samples [1]")  # fmt: skip
_STATES = ("model", "plan", "DASI [1]", "CPQ [1]", "Phi [1]", "thermal margin [K]")


def _target(made: Document, p: Paper, name: str) -> None:
    made.heading(f"Target {name}")
    _against(made, p, name)
    for task in dict.fromkeys(r.task for r in p.rows):
        mine = [r for r in p.rows if r.target == name and r.task == task]
        good = [r for r in mine if r.spent is not None]
        labels = ", ".join(dict.fromkeys(r.label for r in good)) or "none"
        made.table(_SPENT, [_spent(r) for r in good], caption=f"{task} on {name}, per question ({labels}).")
        plain = [r for r in good if r.plan not in CASCADE.values()]
        made.table(
            _STATES, [_states(r) for r in plain],
            caption=f"{task} on {name}: the devices in the prompt / in the steps ({labels}).",
        )  # fmt: skip
        made.bullets([f"{r.model}, {r.plan}: {r.problem}" for r in mine if r.problem])
    example = _example(p, name)
    if example is None:
        return
    plan = figures.telling(example)
    views = figures.views(example, plan)
    made.heading(f"One plan on {name}: {example.model.name}, {example.task.name}, {plan}", 3)
    slug = _slug(name)
    made.figure(figures.front(example), "Plans of the search, and the baselines.", f"front-{slug}")
    made.figure(plan_figures.roofline(views), "Every operator under the roofs of its device.", f"roofline-{slug}")
    made.figure(plan_figures.placement_map(views), "Layers by operators, coloured by device.", f"placement-{slug}")
    made.figure(plan_figures.energy_bars(views), "Where the joules go.", f"energy-{slug}")
    made.figure(plan_figures.timeline(views), "When each device works.", f"timeline-{slug}")


def _slug(name: str) -> str:
    """A target's name as the name of a figure."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _example(p: Paper, target: str) -> Instance | None:
    mine = [i for i in p.instances if i.target.name == target and not i.extra]
    best = [i for i in mine if (i.model.name, i.task.name) == _EXAMPLE]
    return next(iter([*best, *mine]), None)


def _spent(r: Row) -> list[object]:
    s = r.spent
    assert s is not None
    return [
        r.model, r.plan, f"{s.energy:.3g}", f"{s.latency:.3g}", f"{s.power:.3g}", f"{s.tokens_per_joule:.3g}",
        f"{s.under_utilisation:.3f}", "-" if r.gap is None else f"{100 * r.gap:.1f}", f"{r.rounds:.2f}",
        f"{r.samples:.2f}",
    ]  # fmt: skip


def _states(r: Row) -> list[object]:
    of = [r.phases[n] for n in (PROMPT, STEPS)]
    margins = " / ".join("-" if x.margin is None else f"{x.margin:.0f}" for x in of)
    return [r.model, r.plan, *(" / ".join(f"{getattr(x, n):.3f}" for x in of) for n in ("dasi", "cpq", "phi")), margins]


def _cascade(made: Document, p: Paper) -> None:
    made.heading("What the cascade draws")
    made.paragraph(
        "Replayed on recorded answers of another model (150 questions of GSM8K, gpt-4.1-mini, unless a log was given): "
        "not those of the families priced here. rho is what one more sample adds, as a share of a pass."
    )
    made.table(
        ("rho [1]", "rule", "rounds [1]", "samples [1]", "accuracy [1]", "less than all samples [1]",
         "disagreement [1]"),
        [[f"{rho:.3g}", d.rule, f"{d.rounds:.2f}", f"{d.samples:.2f}", f"{d.accuracy:.3f}",
          f"{d.difference.value:+.3f} ({d.difference.low:+.3f} to {d.difference.high:+.3f})", f"{d.disagreement:.3f}"]
         for (_, rho), d in sorted(p.drawn.items(), key=lambda x: x[0][1])],
        ["chosen" if d.rule == FULL else "" for (_, _), d in sorted(p.drawn.items(), key=lambda x: x[0][1])],
        caption="Per question; each rule beside the cascade takes out one part of it.",
    )  # fmt: skip


def _ablation(made: Document, target: str, of: Sequence[Worth]) -> None:
    made.heading(f"Ablation on {target}")
    made.paragraph("Planned without a part, priced with it; geometric means over instances, 95 % intervals (modelled).")
    made.figure(figures.ablation(of), "What a missing part costs.", f"ablation-{_slug(target)}")
    made.table(
        ("part", "objective", "value [1]", "energy [1]", "latency [1]", "instances [1]", "do not run [1]"),
        [[w.part, w.objective, *map(_interval, (w.value, w.energy, w.latency)), w.instances, w.broken] for w in of],
        caption="Over the full plan's.",
    )  # fmt: skip


def _sensitivity(made: Document, p: Paper) -> None:
    if not p.sensitivity:
        return
    made.heading("Ranges of coefficients")
    for target, of in p.sensitivity.items():
        flips = sorted({f"{h.device} {h.field}".strip() for h in of if h.flips})
        made.heading(target, 3)
        made.paragraph(
            f"Savings of energy that change their sign somewhere in a range: {', '.join(flips)}." if flips else
            "No saving of energy changes its sign anywhere in the ranges."
        )  # fmt: skip
        method = CASCADE["energy"]
        made.figure(figures.sensitivity(of, method), f"{target}: the coefficients that move it most.",
                    f"sensitivity-{_slug(target)}")  # fmt: skip
        made.table(
            ("device", "coefficient", "value [SI]", "low [SI]", "high [SI]",
             *(f"{PGSAM[o]} at low / high [%]" for o in OBJECTIVES), f"{method} at low / high [%]", "flips"),
            _sensitivity_rows(of, (*PGSAM.values(), method)), caption="Energy saved against the standard (modelled).",
        )  # fmt: skip


def _sensitivity_rows(of: Sequence[Any], methods: Sequence[str]) -> list[list[object]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for h in of:
        rows.setdefault((h.device, h.field), {})[h.method] = h
    found: list[list[object]] = []
    for (device, name), by in rows.items():
        first = next(iter(by.values()))
        flipped = [m for m, h in by.items() if h.flips]
        flips = "all" if len(flipped) == len(by) else ", ".join(flipped)
        found.append([
            device, name, *(f"{v:.3g}" for v in first.at),
            *(f"{100 * by[m].low:.2f} / {100 * by[m].high:.2f}" if m in by else "-" for m in methods), flips or "no",
        ])  # fmt: skip
    return found


def _quality(made: Document, results: Results) -> None:
    made.heading("Quality of models that really answered")
    if not results.answers and not results.texts:
        made.paragraph("No model answered in this run.")
        return
    made.table(
        ("model", "questions", "rule", "accuracy [1]", "against one batch [1]", "coverage [1]", "samples [1]",
         "energy [J]", "seconds [s]", "power [W]", "IPW [1/W]", "IPJ [1/J]", "ECE [1/J]", "PPP [1]", "joules are"),
        [[a.model, f"{a.questions} {a.source}", a.rule, _interval(a.accuracy), _interval(a.difference),
          f"{a.coverage:.3f}", f"{a.samples:.2f}", f"{a.joules:.3g}", f"{a.seconds:.3g}", f"{a.watts:.3g}",
          f"{a.ipw:.3g}", f"{a.ipj:.3g}", "-" if a.ece is None else f"{a.ece:.3g}",
          "-" if a.ppp is None else f"{a.ppp:.3g}", a.label] for a in results.answers],
        caption="Per question; answers and seconds are measured.",
    )  # fmt: skip
    made.bullets([
        f"{t.model}: perplexity {t.perplexity:.3f} of {t.tokens} tokens that it wrote itself (measured)"
        for t in results.texts
    ])


def _interval(v: Interval) -> str:
    """`-` where nothing could be compared."""
    return "-" if math.isnan(v.value) else f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})"


def _measured(made: Document, results: Results) -> None:
    if not results.measured and not results.not_measured:
        return
    made.heading("Measured on this machine")
    made.table(
        ("model", "workload", "plan", "time [s]", "10 to 90 % [s]", "over the first plan [1]", "cost model [s]",
         "energy [J]", "rounds [1]"),
        [[m.model, m.task, m.plan, f"{m.seconds[0]:.4g}", f"{m.seconds[1]:.4g} to {m.seconds[2]:.4g}",
          f"{m.ratio:.3f}", f"{m.modelled:.4g}", "-" if m.joules is None else f"{m.joules:.4g}", m.rounds]
         for m in results.measured],
        caption="One question: prompt and all steps of a fixed batch, random weights, plans in turns.",
    )  # fmt: skip
    made.bullets([*dict.fromkeys(m.meter for m in results.measured if m.joules is None), *results.not_measured])


def _tail(made: Document, results: Results) -> None:
    made.heading("How to read this")
    made.bullets([
        "energy and latency are of one question: the prompt once, then all samples; energy counts every device of the "
        "machine, waiting ones too",
        "gap: by how much the plan may at most be above the best of all plans for its objective (baselines: balanced)",
        "thermal margin: distance of the hottest device from 85 % of its limit if the phase ran for ever",
        "IPW at equal quality is the standard's mean power over the plan's",
        *results.notes,
    ])  # fmt: skip

