"""qeil_compile: partition a network over CPU, GPU and NPU by time and energy.

    compiled = qeil_compile.aot_compile("model.onnx")    # plan, lower, check
    compiled.save("model.qeil")
    model = qeil_compile.load("model.qeil")              # anywhere, without the model's source
    qeil_compile.load("llm.qeil").generate("Once", n=8)  # a language model

    fast = qeil_compile.compile(module)                  # the same callable, running the plan
    torch.compile(module, backend="qeil")

Importing this package imports no engine; the names below are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        Compiled,
        Settings,
        aot_compile,
        compile,  # noqa: A004
        find_target,
        lower_plan,
        partition,
        price,
        trace,
    )
    from .ir import Workload
    from .loading import load

__all__ = ["Compiled", "Settings", "Workload", "aot_compile", "compile", "find_target", "load", "lower_plan",
           "partition", "price", "trace"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module qeil_compile has no attribute {name}")
    if name == "Workload":
        from .ir import Workload

        return Workload
    if name == "load":
        from .loading import load

        return load
    from . import api

    return getattr(api, name)
