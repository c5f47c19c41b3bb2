"""The command line. One file a command; each has `add(commands)`, which makes its parser, and `run(options)`.

    exit code   0 done, 1 failed, 2 called wrongly, 130 interrupted
    stdout      results;  stderr: `error: …` and `hint: …`, warnings, progress
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager

import fastvoc
from fastvoc.cli import bench, convert, demo, info, inspect, mel, report, synth, terminal, train
from fastvoc.cli.options import everywhere
from fastvoc.cli.terminal import logging_to_stderr
from fastvoc.models.pretrained import weights_may_be_nan


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(
        prog="fastvoc", description="Neural vocoders on compiled kernels.", parents=[everywhere()]
    )
    main_parser.add_argument("--version", action="version", version=f"fastvoc {fastvoc.__version__}")
    main_parser.set_defaults(debug=False, quiet=False)
    commands = main_parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, synth, mel, inspect, convert, info, bench, report, train):
        command.add(commands)
    return main_parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. Raises SystemExit(2) for a wrong call."""
    options = parser().parse_args(argv)
    with logging_to_stderr(options.quiet), _signals_raise(), weights_may_be_nan(getattr(options, "allow_nan", False)):
        try:
            code = options.run(options) or 0
            sys.stdout.flush()  # here, where a broken pipe can still be caught
            return code
        except BrokenPipeError:  # the reader, `head` for one, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as fault:
            if options.debug:
                traceback.print_exc()
            else:
                terminal.report(fault)
            return 1


@contextmanager
def _signals_raise():
    """SIGTERM as SystemExit, so that temporary files are removed on the way out; SIGINT is KeyboardInterrupt as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, _frame):
        # For the rest of the process: what is cut off while it is built, like wave's reader, complains when it is deleted
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or another's
        before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
