"""The tables of the published text, honestly: seven families, three workloads, every claim a row.

    results = bench(targets, Settings(quick=True))      # priced, planned, replayed, ablated
    document(results).html()                            # one page
    results.to_json()

Every figure is labelled measured, calibrated, modelled or emulated; quality is only told of models that answered.
"""

from __future__ import annotations

from .bench import Wanted, bench, write
from .report import Results, document
from .run import PLATFORM, TARGETS, Settings
from .words import label, summary

__all__ = ["PLATFORM", "TARGETS", "Results", "Settings", "Wanted", "bench", "document", "label", "summary", "write"]
