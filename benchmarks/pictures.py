"""python -m benchmarks pictures: what the README shows, drawn from the checked-in results.

docs/img/NAME-light.svg and NAME-dark.svg. A picture whose results are not there is left as it is.
"""

import importlib
from pathlib import Path

from benchmarks.record import RESULTS
from fastvoc._atomic import atomic_path
from fastvoc.report import charts
from fastvoc.report.page import size_of_bars
from fastvoc.report.results import Result, read_results

IMAGES = Path(__file__).parent.parent / "docs" / "img"


def draw_all(folder: Path | None = None) -> None:
    folder = folder or IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in (("speed", speed), ("roofline", roofline)):
        found = drawing()
        if isinstance(found, str):
            print(f"{name}: left as it is: {found}")
            continue
        draw, size, grid = found
        for theme, svg in charts.svgs(draw, size, grid).items():
            write(folder / f"{name}-{theme}.svg", svg)


def read(name: str) -> Result | None:
    """Of benchmarks/results, with today's hints how to read it; None where it is not there or not whole."""
    path = RESULTS / f"{name}-cpu.json"
    if not path.is_file():
        return None
    result = read_results(path)
    if result.values.get("complete") is False or result.values.get("quick"):
        return None
    now = importlib.import_module(f"benchmarks.bench_{name}").REPORT
    result.how = {**now, **result.how} if name == "roofline" else now
    return result


def speed():
    """The first WaveNet and every feed-forward model: times real time, with all threads."""
    groups = {}
    if (wavenet := read("wavenet")) is not None:
        groups |= dict(list(wavenet.realtime().items())[:1])
    if (models := read("models")) is not None:
        groups |= models.realtime()
    if not groups:
        return "wavenet-cpu.json and models-cpu.json are missing"
    return charts.realtime(groups), (8, size_of_bars(groups)[1]), "x"


def roofline():
    result = read("roofline")
    if result is None or not result.how["roofline"]["ceilings"]:
        return "roofline-cpu.json is missing, or not whole"
    return charts.roofline(result.rows, result.how["roofline"]), (8, 5.6), "both"


def write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    print("written:", path)
