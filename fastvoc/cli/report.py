"""fastvoc report: one HTML page of what was measured, with the bundled clip to listen to."""

import importlib.util
import logging
from pathlib import Path

from fastvoc.cli.options import add_command, check_folder
from fastvoc.errors import ConfigError
from fastvoc.report import write_report

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "report", run, "an HTML page of benchmark results and sound, in one file")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json",
                        help="what `python -m benchmarks` has written")
    parser.add_argument("-o", "--out", type=Path, default=Path("report"), metavar="DIR",
                        help="gets index.html (default: report/)")
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="DIR",
                        help="a model folder or checkpoint to hear beside those that come with fastvoc; may be given several times")
    parser.add_argument("--no-audio", action="store_true", help="without the clip through every bundled model")


def run(options) -> None:
    check_folder(options.out, may_be_made=True)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the report needs matplotlib to draw its pictures", hint="pip install 'fastvoc[demo]'")
    path = write_report(options.results, options.out, audio=not options.no_audio, models=options.model)
    log.info("%s, %.1f MB", path, path.stat().st_size / 1e6)
    print(path)
