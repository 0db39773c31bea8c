"""The application: global options, and what becomes of errors, signals and broken pipes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from qeil_compile.errors import QeilError

from . import ask, bench, calibrate, chat, demo, devices, explain, replay, run, top, validate, verify
from . import compile as compile_command
from .console import options, printable

#: typer 0.20 uses click, later versions a copy of their own: the base of usage errors is found by its name.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_GLOBAL = {"--debug", "--quiet", "-q"}
_BUG = 70
_INTERRUPTED = 130

app = typer.Typer(
    name="qeil",
    help="Partition a neural network over CPU, GPU and NPU by time and energy, run the plan, ship it as an artifact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compile")(compile_command.command)
app.command("calibrate")(calibrate.command)
app.command("validate")(validate.command)
app.command("run")(run.command)
app.command("chat")(chat.command)
app.command("ask")(ask.command)
app.command("evaluate")(ask.evaluate)
app.command("explain")(explain.command)
app.command("verify")(verify.command)
app.command("replay")(replay.command)
app.command("top")(top.command)
app.command("demo")(demo.command)
app.add_typer(devices.app, name="devices")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"qeil-compile {version('qeil-compile')}")
        except PackageNotFoundError:
            typer.echo("qeil-compile, source tree")
        raise typer.Exit


@app.callback()
def _globals(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, tables or remarks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    options.debug, options.quiet = debug, quiet
    if not debug:
        # Warnings of engines and of torch are for developers; what a person must know is an error or a note.
        warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `qeil --debug run X` and `qeil run X --debug` mean the same.
    ordered = [a for a in given if a in _GLOBAL] + [a for a in given if a not in _GLOBAL]
    debug = "--debug" in given
    with warnings.catch_warnings(), _terminable():
        try:
            status = app(args=ordered, standalone_mode=False)
            sys.stdout.flush()
            # Later versions of typer turn Ctrl-C into this status themselves.
            return _interrupted(debug) if status == _INTERRUPTED else int(status or 0)
        except QeilError as error:
            return _fail(str(error), 1, debug)
        except _UsageError as error:
            return _fail(f"{error.format_message()} (qeil --help lists commands and options)", 2, debug)
        except typer.Exit as error:
            return error.exit_code
        except (typer.Abort, KeyboardInterrupt):
            return _interrupted(debug)
        except BrokenPipeError:
            # The reader has gone (`qeil explain X | head`). Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            text = f"{type(error).__name__}: {error}; this is a bug in qeil: run again with --debug and report it"
            return _fail(text, _BUG, debug)


def _interrupted(debug: bool) -> int:
    return _fail("interrupted; nothing was left behind", _INTERRUPTED, debug)


def _fail(text: str, status: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that temporary output is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
