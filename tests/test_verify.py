"""Verifiers that work, raise, hang and lie; the sandbox; answers in text; arithmetic; multiple choice."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import pytest

from qeil_compile import sampling as qs
from qeil_compile.errors import InputError
from qeil_compile.sampling import extract, sandbox
from qeil_compile.sampling.arithmetic import evaluate

PYTHON = [sys.executable, "-I", "-S", "-c"]


def test_sandbox_gives_output_status_and_an_empty_folder() -> None:
    code = "import os, sys; print(sorted(os.listdir()), sys.stdin.read()); sys.exit(3)"
    done = sandbox.run([*PYTHON, code], "given", seconds=20, files={"a.txt": "x"})
    assert (done.status, done.output.strip(), done.timed_out) == (3, "['a.txt'] given", False)
    assert not [name for name in os.environ if name in done.output]


def test_sandbox_kills_what_hangs_and_what_it_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(2.5); pathlib.Path({str(mark)!r}).write_text('x')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); import time; time.sleep(60)"
    started = time.monotonic()
    done = sandbox.run([*PYTHON, code], seconds=1.0)
    assert done.timed_out and time.monotonic() - started < 20
    time.sleep(3)
    assert not mark.exists()


def test_sandbox_limits_memory_and_output() -> None:
    done = sandbox.run([*PYTHON, "x = bytearray(1 << 30)"], seconds=20, memory=256 << 20)
    assert done.status != 0 and "MemoryError" in done.errors
    done = sandbox.run([*PYTHON, "while True: print('x' * 10000)"], seconds=20, output=1 << 20)
    assert done.status not in (0, None) and len(done.output) <= 1 << 16


def test_sandbox_has_no_network_where_the_kernel_allows_it() -> None:
    code = ("import socket; s = socket.socket(); s.settimeout(1)\n"
            "try: print(s.connect_ex(('127.0.0.1', {port})))\nexcept OSError as e: print(e.errno)")  # fmt: skip
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        done = sandbox.run([*PYTHON, code.format(port=server.getsockname()[1])], seconds=20)
    if not done.isolated:
        pytest.skip("no namespaces without privileges on this kernel")
    assert done.output.strip() != "0"


def test_sandbox_reports_a_program_that_does_not_exist() -> None:
    done = sandbox.run(["/no/such/program"], seconds=20)
    assert done.status == 125 and "No such file" in done.errors


@pytest.mark.parametrize("options", [{"seconds": 0.0}, {"memory": 0}, {"seconds": math.nan}])
def test_sandbox_refuses_limits_that_are_none(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="sandbox: found"):
        sandbox.run(["true"], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="command"):
        sandbox.run([])


def test_guard_turns_faults_into_no_word() -> None:
    def raises(question: object, sample: qs.Sample) -> bool:
        raise RuntimeError("broken")

    guard = qs.Guard(raises, patience=2)
    checks = [guard(None, qs.Sample("a")) for _ in range(3)]
    assert [c.accepted for c in checks] == [None] * 3
    assert "broken" in checks[0].fault and not guard.usable and "not asked" in checks[2].fault
    for nonsense in ("yes", math.nan, [1]):
        assert qs.Guard(lambda q, s, v=nonsense: v)(None, qs.Sample("a")).fault  # type: ignore[misc]
    assert qs.Guard(lambda q, s: 0.7, threshold=0.5)(None, qs.Sample("a")).accepted is True
    assert qs.Guard(lambda q, s: 0.7)(None, qs.Sample("a")).accepted is None
    assert qs.Guard(lambda q, s: None)(None, qs.Sample("a")).fault == ""


def test_guard_does_not_wait_for_a_verifier_that_hangs() -> None:
    guard = qs.Guard(lambda q, s: time.sleep(30) or True, seconds=0.2)
    started = time.monotonic()
    assert "no answer within" in guard(None, qs.Sample("a")).fault
    assert not guard.usable and guard(None, qs.Sample("a")).accepted is None
    assert time.monotonic() - started < 10


def test_command_verifier_reads_json_and_answers_by_status() -> None:
    code = "import json, sys; d = json.load(sys.stdin); print('{\"score\": 0.5}'); sys.exit(d['answer'] != '7')"
    verifier = qs.CommandVerifier([*PYTHON, code])
    yes, no = verifier("7", qs.Sample("7")), verifier("7", qs.Sample("8"))
    assert (yes.accepted, yes.score, no.accepted) == (True, 0.5, False)
    assert "exit status 5" in qs.CommandVerifier([*PYTHON, "raise SystemExit(5)"])("q", qs.Sample("a")).fault
    assert "killed" in qs.CommandVerifier([*PYTHON, "while 1: pass"], seconds=0.5)("q", qs.Sample("a")).fault


TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


@pytest.mark.parametrize(("text", "accepted"), [
    ("Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", True),
    ("def add(a, b):\n    return a - b", False),
    ("def add(a, b:", False),
    ("import os\nos._exit(0)", False),
    ("import sys\nsys.exit(0)", False),
    ("def add(a, b):\n    while True: pass", False),
    ("print('0' * 32)\ndef add(a, b):\n    return 3", False),
    ("", False),
])  # fmt: skip
def test_unit_tests_accept_only_what_runs_to_their_end(text: str, accepted: bool) -> None:
    check = qs.UnitTests(TESTS, seconds=5.0 if accepted else 2.0)("q", qs.Sample("x", text))
    assert check.accepted is accepted and not check.fault


def test_false_accept_bound_is_clopper_pearson() -> None:
    from scipy import stats

    assert qs.false_accept_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert stats.binom.cdf(3, 100, qs.false_accept_bound(3, 100)) == pytest.approx(0.05)
    assert qs.false_accept_bound(0, 0) == 1.0
    with pytest.raises(InputError, match="false accepts"):
        qs.false_accept_bound(3, 2)


@pytest.mark.parametrize(("text", "answer"), [
    ("She makes 9 * 2 = 18.\n#### 18", "18"), ("so the answer is $1,234.50.", "1234.5"), ("#### -0.50", "-0.5"),
    ("it is 3/6", "1/2"), ("6/3", "2"), ("\\boxed{42}", "42"), ("The answer: 7 apples, not 8", "7"),
    ("first 3 then 4", "4"), ("no digits", None), ("", None), ("5%", "5"), ("about .75", "0.75"),
    ("#### 1,000,000", "1000000"), ("#### 10.00", "10"), ("1/0", None), ("#### \nnone", None),
])  # fmt: skip
def test_numbers_in_text(text: str, answer: str | None) -> None:
    assert extract.number(text) == answer


def test_other_answers_in_text() -> None:
    assert extract.pattern(r"= (\w+)")("a = b, c = d") == "d" and extract.pattern("x+")("none") is None
    with pytest.raises(InputError, match="no regular expression"):
        extract.pattern("(")
    assert extract.boxed(r"so \boxed{\frac{1}{2}} and \boxed{x^{2}}") == "x^{2}" and extract.boxed(r"\boxed{a") is None
    letter = extract.choice("ABCD")
    assert letter("The answer is (C), since A") == "C" and letter("B or D") == "D" and letter("None") is None
    assert extract.code("```py\na\n```\n```\nb\n```") == "b" and extract.code("x = 1") == "x = 1"
    assert extract.latex(r"\dfrac{1}{9}") == extract.latex(r"\frac{1} {9}") == r"\frac{1}{9}"
    assert extract.latex("$ 7.0 $") == "7"


@pytest.mark.parametrize(("text", "equations", "wrong"), [
    ("16 - 3 - 4 = <<16-3-4=9>>9, then <<9*2=18>>18", 2, 0), ("<<16-3-4=8>>8", 1, 1),
    ("so 16 - 3 - 4 = 9 eggs and 9 * 2 = $18", 2, 0), ("3 x 4 = 13", 1, 1), ("12 / 5 = 2.4", 1, 0),
    ("10 / 3 = 3.33", 1, 0), ("25% * 80 = 20", 1, 0), ("5/20 = 25%", 1, 0), ("x = 5", 0, 0), ("5 = 5", 0, 0),
    ("2 + 2 = 4 * 1", 0, 0), ("1 / 0 = 0", 0, 0), ("9**9**9 = 1", 0, 0), ("", 0, 0),
])  # fmt: skip
def test_arithmetic_of_chains(text: str, equations: int, wrong: int) -> None:
    found = qs.check_arithmetic(text)
    score = math.nan if found.score is None else found.score
    assert qs.chain_features(text)["arithmetic"] == pytest.approx(score, nan_ok=True)
    assert (found.equations, len(found.wrong)) == (equations, wrong)


def test_arithmetic_verifier_wants_the_last_result_to_be_the_answer() -> None:
    verify = qs.ArithmeticVerifier()
    assert verify("q", qs.Sample("18", "<<9*2=18>>18")).accepted is True
    assert verify("q", qs.Sample("17", "<<9*2=18>>18")).accepted is False
    assert verify("q", qs.Sample("18", "<<9*2=17>>")).accepted is False
    assert verify("q", qs.Sample("18", "no equation")).accepted is None
    assert evaluate("(" * 300 + "1" + ")" * 300) is None and evaluate("1.5.2") is None


def test_multiple_choice_is_exact() -> None:
    stop, shares = qs.choose_option({"A": -1.0, "B": -2.0, "C": -math.inf})
    assert (stop.reason, stop.answer) == (qs.Reason.EXACT, "A") and sum(shares.values()) == pytest.approx(1.0)
    assert qs.choose_option([-3.0, -1.0])[0].answer == "1"
    per_token = qs.choose_option({"A": -4.0, "B": -3.0}, lengths=[4, 1])[0]
    assert (per_token.reason, per_token.answer) == (qs.Reason.RULE, "A")
    assert qs.choose_option([-1.0, -1.0])[0].reason is qs.Reason.RULE
    unknown, shares = qs.choose_option({"A": math.nan, "B": -2.0})
    assert (unknown.reason, unknown.answer) == (qs.Reason.RULE, "B") and math.isnan(shares["A"])
    assert qs.choose_option([math.nan, math.nan])[0].answer is None
    assert qs.choose_option([-math.inf, -math.inf])[0].answer is None
    with pytest.raises(InputError, match="options"):
        qs.choose_option([])
    with pytest.raises(InputError, match="lengths"):
        qs.choose_option([-1.0], lengths=[0])
