"""torch.compile with the backend "qeil": the callable, and the registered name."""

from __future__ import annotations

import importlib.metadata
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qeil_compile import dynamo
from qeil_compile.dynamo import qeil
from tests import zoo

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"target": "torch:cpu", "measure": False}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """dynamo keeps compiled frames of functions by their code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments for which a graph was compiled, in order."""
    seen: list[tuple[Any, ...]] = []
    real = dynamo._compile

    def record(module: Any, args: tuple[Any, ...], settings: Any) -> Any:
        seen.append(tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in args))
        return real(module, args, settings)

    monkeypatch.setattr(dynamo, "_compile", record)
    return seen


def compiled(model: Any, **more: Any) -> Any:
    options = {**OPTIONS, **more.pop("options", {})}
    return torch.compile(model, backend=qeil, options=options, **more)


@pytest.mark.parametrize("placement", ["torch:cpu", "onnxruntime:CPU", "openvino:CPU"])
def test_module_with_parameters(placement: str, compiled_graphs: list[Any]) -> None:
    model, args = zoo.mlp(), zoo.EXAMPLES["mlp"]()
    fast = compiled(model, options={"target": placement})
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(*args), model(*args), rtol=1e-4, atol=1e-5)
    assert len(compiled_graphs) == 1


def test_name_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["torch_dynamo_backends"] == {"qeil": "qeil_compile.dynamo:qeil"}


def test_name_is_registered_where_the_package_is_installed() -> None:
    """Where it is not (a source tree), the declared entry point is installed for this test's dynamo registry."""
    from torch._dynamo.backends import registry

    (declared,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "torch_dynamo_backends"
    ].items()
    point = importlib.metadata.EntryPoint(declared[0], declared[1], "torch_dynamo_backends")
    installed = any(d.metadata["Name"] == "qeil-compile" for d in importlib.metadata.distributions())
    if installed:
        assert point in importlib.metadata.entry_points(group="torch_dynamo_backends")
        assert "qeil" in torch.compiler.list_backends()
    else:
        registry.list_backends()  # reads the entry points that there are
        registry._COMPILER_FNS.pop("qeil", None)
        registry._BACKENDS["qeil"] = point
    fast = torch.compile(zoo.mlp(), backend="qeil", options=OPTIONS)
    args = zoo.EXAMPLES["mlp"]()
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), zoo.mlp()(*args))


def test_graph_breaks(compiled_graphs: list[Any]) -> None:
    def broken(x: Tensor) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        if y.sum().item() > 0:
            return y + 1
        return y - 1

    fast = compiled(broken)
    for x in (torch.ones(3), -torch.ones(3)):
        torch.testing.assert_close(fast(x), broken(x))
    assert len(compiled_graphs) >= 3


def test_new_shapes(compiled_graphs: list[Any]) -> None:
    model = zoo.mlp()
    fast = compiled(model)
    with torch.no_grad():
        for batch in (3, 5, 7, 3, 5):
            x = torch.randn(batch, 16)
            torch.testing.assert_close(fast(x), model(x))
    # Each size once, also after dynamo has turned to symbolic sizes.
    assert len(compiled_graphs) in (3, 4)


def test_dynamic_shapes(compiled_graphs: list[Any]) -> None:
    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1) * x.shape[0] + y.new_zeros(x.numel()) + x.shape[1]

    fast = compiled(scaled, dynamic=True)
    for rows, columns in ((2, 3), (4, 5), (2, 3), (6, 1)):
        x = torch.randn(rows, columns)
        torch.testing.assert_close(fast(x, x), scaled(x, x))
    assert any(isinstance(a, int) for call in compiled_graphs for a in call)


def test_dynamic_size_is_returned() -> None:
    def sized(x: Tensor) -> tuple[Tensor, int]:
        return x + 1, x.shape[0] * 2

    fast = compiled(sized, dynamic=True)
    for rows in (2, 5, 9):
        value, size = fast(torch.zeros(rows, 3))
        assert size == rows * 2
        assert value.shape == (rows, 3)


def test_gradients_fall_back_with_a_warning() -> None:
    model, (x,) = zoo.mlp(), zoo.EXAMPLES["mlp"]()
    fast = compiled(model)
    with pytest.warns(UserWarning, match="gradients"):
        fast(x).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model(x).sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_of_an_input() -> None:
    fast = compiled(lambda x: (x**3).sum())
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.warns(UserWarning, match="gradients"):
        fast(x).backward()
    torch.testing.assert_close(x.grad, torch.tensor([3.0, 12.0]))


def test_no_warning_without_gradients() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(lambda x: x * 2)(torch.ones(3))
        with torch.no_grad():
            compiled(zoo.mlp())(*zoo.EXAMPLES["mlp"]())


def test_grad_and_no_grad_in_turn() -> None:
    model, (x,) = zoo.mlp(), zoo.EXAMPLES["mlp"]()
    fast = compiled(model)
    with torch.no_grad():
        assert not fast(x).requires_grad
    with pytest.warns(UserWarning, match="gradients"):
        assert fast(x).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


def test_weights_that_change_are_seen() -> None:
    """A graph's parameters are read when it runs, as with every other backend."""
    model, (x,) = zoo.mlp(), zoo.EXAMPLES["mlp"]()
    fast = compiled(model)
    with torch.no_grad():
        fast(x)
        for p in model.parameters():
            p.add_(0.5)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.Dropout])
def test_train_mode(layer: Any) -> None:
    """Running statistics and random numbers cannot be planned: such a graph runs in eager torch."""
    model = nn.Sequential(nn.Linear(4, 4), layer(4) if layer is nn.BatchNorm1d else layer(0.5)).train()
    other = nn.Sequential(nn.Linear(4, 4), layer(4) if layer is nn.BatchNorm1d else layer(0.5)).train()
    other.load_state_dict(model.state_dict())
    fast = compiled(model)
    x = torch.randn(8, 4)
    with torch.no_grad(), pytest.warns(UserWarning, match="eager"):
        for _ in range(3):
            torch.manual_seed(5)
            found = fast(x)
            torch.manual_seed(5)
            torch.testing.assert_close(found, other(x))
    for (name, a), (_, b) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"speed": "fast"}, "speed: unknown"), ({"objective": "beauty"}, "beauty"), ({"target": "nowhere"}, "nowhere"),
     ({"pins": {"no_such_op": "torch:cpu"}}, "no_such_op")],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed if "speed" in options else Exception, match=match):
        compiled(lambda x: x + 1, options=options)(torch.ones(2))


def test_integer_and_boolean_inputs() -> None:
    def pick(x: Tensor, index: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x[index], 0)

    fast = compiled(pick)
    args = (torch.arange(10), torch.tensor([9, 0, 3]), torch.tensor([True, False, True]))
    assert torch.equal(fast(*args), torch.tensor([9, 0, 3]))


@pytest.mark.parametrize(
    "function",
    [lambda x: None, lambda x: (x + 1, None, 3), lambda x: {"a": x * 2, "b": [x - 1, x]}, lambda x: x,
     lambda x: (x, x), lambda x: x.expand(2, 3).t(), lambda x: [], lambda x: x.sum()],
)  # fmt: skip
def test_results(function: Any) -> None:
    x = torch.arange(3.0)
    found, expected = compiled(function)(x), function(x)
    torch.testing.assert_close(found, expected) if expected is not None else None
    assert type(found) is type(expected)


def test_inputs_changed_in_place() -> None:
    def change(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    x = torch.zeros(3)
    with pytest.warns(UserWarning, match="eager"):
        found = compiled(change)(x)
    torch.testing.assert_close(x, torch.ones(3))
    torch.testing.assert_close(found, torch.full((3,), 2.0))


def test_inference_mode() -> None:
    model, args = zoo.two_branches(), zoo.EXAMPLES["two_branches"]()
    fast = compiled(model)
    with torch.inference_mode():
        found = fast(*args)
        torch.testing.assert_close(found, model(*args))


def test_two_models_side_by_side(compiled_graphs: list[Any]) -> None:
    one, two = zoo.mlp(0), zoo.mlp(1)
    fast_one, fast_two = compiled(one), compiled(two)
    (x,) = zoo.EXAMPLES["mlp"]()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast_one(x), one(x))
            torch.testing.assert_close(fast_two(x), two(x))
    assert not torch.equal(one(x), two(x))
    # Dynamo may let both models share one graph; each has a plan of its own, and calls in turn keep both.
    assert len(compiled_graphs) == 2


def test_weights_are_constants_and_a_change_is_seen(compiled_graphs: list[Any]) -> None:
    model = zoo.mlp()
    fast = compiled(model)
    (x,) = zoo.EXAMPLES["mlp"]()
    with torch.no_grad():
        before = fast(x)
        for parameter in model.parameters():
            parameter.add_(0.5)
        torch.testing.assert_close(fast(x), model(x))
        assert not torch.allclose(before, fast(x))
    assert [len(args) for args in compiled_graphs] == [1, 1]


def test_results_are_independent_of_later_calls() -> None:
    model = zoo.mlp()
    fast = compiled(model, options={"target": "openvino:CPU"})
    first, second = torch.randn(2, 3, 16)
    with torch.no_grad():
        kept = fast(first)
        fast(second)
        torch.testing.assert_close(kept, model(first), rtol=1e-4, atol=1e-5)


def test_float_scalars_that_change() -> None:
    def scaled(x: Tensor, k: float) -> Tensor:
        return x * k

    fast = compiled(scaled)
    for k in (1.5, 2.5, 3.5, 1.5):
        torch.testing.assert_close(fast(torch.ones(2), k), torch.full((2,), k))
