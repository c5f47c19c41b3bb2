"""Fills page.html (jinja2, which torch brings along) with results and sound, and writes one file."""

import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path

import fastvoc
from fastvoc._atomic import atomic_path
from fastvoc.models import MODELS
from fastvoc.report import charts
from fastvoc.report.results import Result, matches, read_results


def write_report(paths: list[Path], out: Path, audio: bool = True, models: Sequence[Path] = ()) -> Path:
    """out/index.html, which needs nothing beside it and no network. Returns its path.

    models: to hear beside those that come with fastvoc
    """
    import jinja2

    results = [read_results(p) for p in paths]
    groups = {name: bars for r in results for name, bars in r.realtime().items()}
    bars = {k: charts.themed(charts.realtime(some), size_of_bars(some), "x") for k, some in _columns(groups).items()}
    if audio:
        from fastvoc.report.listen import recordings

        sounds = recordings(models)
    else:
        sounds = []
    unheard = sorted(set(MODELS) - {sound["family"] for sound in sounds})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "ratio": ratio}
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    html = template.render(
        version=fastvoc.__version__, today=datetime.date.today().isoformat(), sections=[_section(r) for r in results],
        sounds=sounds, unheard=unheard, bars=bars,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / "index.html"


def _columns(groups: dict) -> dict[str, dict]:
    """Halves with about as many bars each, so that a wide page shows them side by side; nothing where there is nothing."""
    halves, total, done = {"": {}, "more": {}}, sum(map(len, groups.values())), 0
    for name, bars in groups.items():
        halves["" if 2 * done < total else "more"][name] = bars
        done += len(bars)
    return {k: half for k, half in halves.items() if half}


def size_of_bars(groups: dict) -> tuple[float, float]:
    """Inches of a picture of `charts.realtime`."""
    return 5.6, 0.7 + 0.24 * sum(len(bars) + 1.35 for bars in groups.values())


def _section(result: Result) -> dict:
    how = result.how
    pictures = [(c.get("title", ""), charts.curves(result.rows, c), (5.6, 3.6)) for c in how.get("curves", [])]
    if how.get("roofline", {}).get("ceilings"):
        drawing = charts.roofline(result.rows, how["roofline"])
        pictures.insert(0, (how["roofline"].get("title", "Roofline"), drawing, (6.2, 5.2)))
    pictures = [{"title": title, **charts.themed(draw, size)} for title, draw, size in pictures if draw is not None]
    tables = [_table(result, t) for t in how.get("tables", [])]
    columns = list(dict.fromkeys(k for row in result.rows for k in row))
    cells = [[row.get(c) for c in columns] for row in result.rows]
    everything = {"title": "all rows", "empty": "", "long": True, "heads": columns, "rows": cells}
    summary = result.summary()
    below = [line for line in summary if not line["headline"]]
    spread = [measure([line["over_peer"] for line in below]) for measure in (min, statistics.median, max)] if below else []
    method = result.method if isinstance(result.method, dict) else {"": result.method}
    return {
        "id": result.name, "result": result, "headlines": [line for line in summary if line["headline"]],
        "below": below, "spread": spread, "comparisons": result.comparisons(), "pictures": pictures,
        "tables": tables, "everything": everything, "method": method,
    }


def _table(result: Result, how: dict) -> dict:
    last = list(how["columns"])[-1]
    rows = result.values.get(how.get("rows", "rows"), [])
    keep = [r for r in rows if matches(r, how.get("where", {})) and r.get(last) is not None]
    return {
        "empty": "" if keep else how.get("empty", "Nothing yet."), "long": len(keep) > 12,
        "title": how.get("title", ""), "heads": list(how["columns"].values()),
        "rows": [[r.get(c) for c in how["columns"]] for r in keep],
    }


def number(value) -> str:
    """Three significant digits, thousands set apart."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio(value) -> str:
    return "" if value is None else f"{value:.3g}×" if value < 100 else f"{value:,.0f}×"
