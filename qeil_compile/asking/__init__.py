"""Questions to compiled language models: samples in rounds, stopped as soon as the verdict is in, with joules.

    source, selector = open_source([load_decoder("model.qeil")]), default_selector(k=20, delta=0.05)
    verdict = ask(source, selector, "How much is 3 * 4?")
"""

from __future__ import annotations

from qeil_compile.asking.evaluate import Result, Task, evaluate, load_task, read_results, summary
from qeil_compile.asking.source import default_selector, measured_price, open_source

__all__ = ["Result", "Task", "default_selector", "evaluate", "load_task", "measured_price", "open_source",
           "read_results", "summary"]  # fmt: skip
