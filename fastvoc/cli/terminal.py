"""What a person sees: warnings and errors, progress bars, tables."""

import logging
import os
import sys
from contextlib import contextmanager

from fastvoc.errors import FastvocError


class _Stderr(logging.Handler):
    def emit(self, record):
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(prefix + self.format(record), file=sys.stderr)


@contextmanager
def logging_to_stderr(quiet: bool):
    """The library's warnings, and unless quiet its notes, on stderr for a while."""
    log, handler = logging.getLogger("fastvoc"), _Stderr()
    level = log.level
    log.addHandler(handler)
    if not os.environ.get("FASTVOC_LOG"):
        log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def report(fault: Exception, about=None) -> None:
    """One line of error and one of hint. about: the file at fault, named unless the message does."""
    message, hint = _words(fault)
    if about is not None and str(about) not in message:
        message = f"{about}: {message}"
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _words(fault: Exception) -> tuple[str, str | None]:
    if isinstance(fault, FastvocError):
        return fault.message, fault.hint
    if isinstance(fault, OSError):
        return f"{fault.filename}: {fault.strerror}" if fault.filename and fault.strerror else str(fault), None
    if isinstance(fault, ImportError):  # a package that an option or a file needs; the message says which
        return str(fault), None
    return f"unexpected {type(fault).__name__}: {fault}", "Run it with --debug to see where, and please report it."


@contextmanager
def progress_bar(options, name: str, unit: str = "sample"):
    """Yields update(done, total, **figures). It shows nothing unless stderr is a terminal and tqdm is installed."""
    bar = None
    if sys.stderr.isatty() and not options.quiet:
        try:
            from tqdm import tqdm

            bar = tqdm(desc=name, unit=f" {unit}s", unit_scale=unit == "sample", dynamic_ncols=True, leave=False)
        except ImportError:
            pass

    def update(done: int, total: int, **figures):
        if bar is None:
            return
        if bar.total is None:  # a resumed training starts late; what was done before must not count as speed
            bar.total, bar.initial = total, figures.pop("initial", 0)
        bar.set_postfix(figures, refresh=False)
        bar.n = done
        bar.refresh()

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()


def print_table(rows: list[tuple[str, ...]], left: int = 1) -> None:
    """The first row is the head; the first `left` columns are flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for n, row in enumerate(rows):
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())
        if n == 0:
            print("  ".join("-" * width for width in widths))
