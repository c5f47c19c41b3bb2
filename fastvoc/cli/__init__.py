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
    with logging_to_stderr(options.quiet), _sigterm_exits(), weights_may_be_nan(getattr(options, "allow_nan", False)):
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
def _sigterm_exits():
    """SIGTERM as SystemExit, so that temporary files are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
