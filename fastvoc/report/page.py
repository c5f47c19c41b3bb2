"""Fills page.html (jinja2, which torch brings along) with results and sound, and writes one file."""

import datetime
from pathlib import Path

import fastvoc
from fastvoc._atomic import atomic_path
from fastvoc.report import charts
from fastvoc.report.results import Result, read_results


def write_report(paths: list[Path], out: Path, audio: bool = True) -> Path:
    """out/index.html, which needs nothing beside it and no network. Returns its path."""
    import jinja2

    results = [read_results(p) for p in paths]
    if audio:
        from fastvoc.report.listen import recordings

        sounds = recordings()
    else:
        sounds = []
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "ratio": ratio}
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    html = template.render(
        version=fastvoc.__version__, today=datetime.date.today().isoformat(), sections=[_section(r) for r in results],
        sounds=sounds,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / "index.html"


def _section(result: Result) -> dict:
    how = result.how
    pictures = [{"title": c.get("title", ""), **charts.curves(result.rows, c)} for c in how.get("curves", [])]
    if "roofline" in how:
        pictures.append({"title": how["roofline"].get("title", "Roofline"), **charts.roofline(result.rows, how["roofline"])})
    tables = [_table(result, t) for t in how.get("tables", [])]
    columns = list(dict.fromkeys(k for row in result.rows for k in row))
    everything = {"title": "all rows", "heads": columns, "rows": [[row.get(c) for c in columns] for row in result.rows]}
    method = result.method if isinstance(result.method, dict) else {"": result.method}
    return {
        "id": result.name, "result": result, "summary": result.summary(), "comparisons": result.comparisons(),
        "pictures": pictures, "tables": tables, "everything": everything, "method": method,
    }


def _table(result: Result, how: dict) -> dict:
    keep = [r for r in result.rows if all(r.get(k) == v for k, v in how.get("where", {}).items())]
    keep = [r for r in keep if any(r.get(c) is not None for c in list(how["columns"])[-1:])]
    return {
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
