"""A results file of `python -m benchmarks`, as the report understands it.

Beside its rows a file may say how they are to be read:

    "report": {
      "title": "…",
      "group": ["size"],                 rows with equal values here are contenders of one comparison
      "vary": ["threads", "streams"],    … and within a group, of one setting
      "metric": "samples_per_s", "unit": "samples/s", "better": "higher" | "lower",
      "baseline": "PyTorch loop",        the contender that ratios are taken to, in fp32
      "ours": "fastvoc",                 how the names of our contenders begin
      "realtime": {"column": "rtf", "where": {…}},   seconds computed per second of sound: bars of the first group column's values
      "curves": [{"title": …, "x": …, "y": …, "series": [columns], "x_label": …, "y_label": …, "where": {column: value},
                  "axes": "linear", else logarithmic}],
      "roofline": {"title": …, "intensity": column, "rate": column, "label": [columns], "marker": column, "where": {…},
                   "ceilings": [{"name": …, "peak": …} or {"name": …, "bandwidth": …}]},
      "tables": [{"title": …, "columns": {column: heading}, "where": {…}, "rows": another list of the file, "empty": words}]
    }

A file without it is shown as a table. "complete": false marks a run that was interrupted.
"""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from fastvoc.errors import ConfigError
from fastvoc.models.pretrained import read_json


@dataclass
class Comparison:
    """Contenders of one setting, best first."""

    group: str
    setting: str
    bars: list[dict]  # name, value, low, high, share (0…1 of the longest bar), ratio, ours
    headline: bool  # a whole model with all threads: stands above the fold


@dataclass
class Result:
    path: Path
    name: str
    environment: dict
    rows: list[dict]
    how: dict = field(default_factory=dict)
    method: object = ""
    skipped: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)  # all of the file

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before any number."""
        kept, n = sum(bool(r.get("disturbed_rounds_kept")) for r in self.rows), len(self.rows)
        return [
            *(["This run was interrupted: not all of it is here."] if self.values.get("complete") is False else []),
            *(["This was a short run, which proves no speed."] if self.values.get("quick") else []),
            *([f"In {kept} of {n} rows other programs took part of the machine."] if kept * 10 > n else []),
        ]

    @property
    def title(self) -> str:
        return self.how.get("title", self.name)

    @property
    def machine(self) -> str:
        e = self.environment
        device = e.get("device") or e.get("cpu", "an unknown machine")
        parts = [device, f"{e['cores']} cores" if "cores" in e and "device" not in e else "", e.get("isa", "")]
        return ", ".join(p for p in parts if p)

    @property
    def versions(self) -> str:
        e = self.environment
        commit = (e.get("commit") or "")[:10]
        dirty = " with uncommitted changes" if e.get("dirty") else ""
        what = [f"{k} {e[k]}" for k in ("fastvoc", "torch", "python") if e.get(k)]
        return ", ".join([*what, *([f"commit {commit}{dirty}"] if commit else []), str(e.get("date", ""))[:10]])

    def comparisons(self) -> list[Comparison]:
        how = self.how
        if not {"group", "metric", "baseline"} <= set(how):
            return []
        settings: dict = {}
        for row in self.rows:
            if row.get(how["metric"]) is not None:
                key = tuple(str(row.get(c, "")) for c in how["group"]), tuple(
                    _in_words(c, row[c]) for c in how.get("vary", []) if c in row
                )
                settings.setdefault(key, []).append(row)
        return [self._comparison(group, setting, rows) for (group, setting), rows in settings.items()]

    def _comparison(self, group, setting, rows) -> Comparison:
        metric, higher = self.how["metric"], self.how.get("better", "higher") == "higher"
        rows = sorted(rows, key=lambda r: r[metric], reverse=higher)
        longest = max(r[metric] for r in rows)
        base = next((r[metric] for r in rows if self._is_baseline(r)), None)
        bars = []
        for r in rows:
            value = r[metric]
            ratio = None if not base or not value else (value / base if higher else base / value)
            bars.append({
                "name": _named(r), "value": value,
                "low": r.get(f"{metric}_min"), "high": r.get(f"{metric}_max"),
                "share": value / longest if longest else 0, "ratio": ratio,
                "ours": self._is_ours(r),
            })  # fmt: skip
        return Comparison(" · ".join(group), ", ".join(setting), bars, any(map(self._is_headline, rows)))

    def realtime(self) -> dict[str, list[dict]]:
        """Per model, with the most threads: how many times faster than real time the baseline, the best other and ours are."""
        how = self.how.get("realtime")
        if not how:
            return {}
        groups: dict[str, list[dict]] = {}
        for r in self.rows:
            if self._is_headline(r):
                groups.setdefault(str(r[self.how["group"][0]]), []).append(r)
        shown = {}
        for group, some in groups.items():
            some = sorted(some, key=lambda r: -r[how["column"]])
            others = [r for r in some if not self._is_ours(r)]
            base = [r for r in others if self._is_baseline(r)]
            ours = [r for r in some if r["contender"] == self.how.get("ours", "fastvoc")]  # not what it would be on other machines
            picked = [*base, *(r for r in others[-1:] if r not in base), *ours]
            shown[group] = [
                {"name": _named(r), "value": 1 / r[how["column"]], "ours": self._is_ours(r)} for r in picked
            ]  # fmt: skip
        return shown

    @functools.cached_property
    def _most_threads(self) -> int:
        return max((r["threads"] for r in self.rows if "threads" in r), default=0)

    def _is_headline(self, row: dict) -> bool:
        how = self.how.get("realtime")
        return bool(
            how and row.get(how["column"]) and matches(row, how.get("where", {})) and row["threads"] == self._most_threads
        )

    def _is_baseline(self, row: dict) -> bool:
        return row["contender"] == self.how["baseline"] and row.get("precision", "fp32") == "fp32"

    def _is_ours(self, row: dict) -> bool:
        return row["contender"].startswith(self.how.get("ours", "fastvoc"))

    def summary(self) -> list[dict]:
        """Per comparison our best contender beside the baseline and beside the best of the others."""
        lines = []
        higher = self.how.get("better", "higher") == "higher"
        for c in self.comparisons():
            ours = [b for b in c.bars if b["ours"]]
            others = [b for b in c.bars if not b["ours"]]
            if not ours or not others:
                continue
            ours, peer = ours[0], others[0]
            over = ours["value"] / peer["value"] if higher else peer["value"] / ours["value"]
            lines.append({
                "group": c.group, "setting": c.setting, "ours": ours, "peer": peer, "over_peer": over, "headline": c.headline,
            })  # fmt: skip
        return lines


def _in_words(column: str, value) -> str:
    """1 thread, 8 streams, batch of 1"""
    if column == "batch":
        return f"batch of {value}"
    return f"{value} {column.removesuffix('s') if str(value) == '1' else column}"


def matches(row: dict, where: dict) -> bool:
    return all(row.get(k) == v for k, v in where.items())


def _named(row: dict) -> str:
    return " ".join(str(x) for x in (row["contender"], row.get("precision", "")) if x)


def read_results(path: Path) -> Result:
    """Raises ConfigError for a file that `python -m benchmarks` did not write."""
    values = read_json(Path(path))
    missing = [k for k in ("name", "environment", "rows") if k not in values]
    rows = values.get("rows")
    if missing or not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise ConfigError(
            f"{path} is no results file: {'it lacks ' + ', '.join(missing) if missing else 'its rows are no objects'}",
            hint="Pass files that `python -m benchmarks` has written.",
        )
    return Result(
        Path(path), values["name"], values["environment"], rows, values.get("report", {}), values.get("method", ""),
        values.get("skipped", {}), values,
    )


def compare(before: Result, after: Result, tolerance: float = 0.05) -> list[dict]:
    """Contenders of ours in both files, with the change of their metric; regressions (worse by over `tolerance`) marked."""
    how = after.how or before.how
    if "metric" not in how:
        raise ConfigError(f"{after.path} does not say which of its columns is the metric")
    keys = [*how["group"], *how.get("vary", []), "contender", "precision"]
    name = lambda row: tuple(json.dumps(row.get(k)) for k in keys)
    old = {name(r): r for r in before.rows if r.get(how["metric"])}
    lines = []
    for row in after.rows:
        if name(row) not in old or not row.get(how["metric"]):
            continue
        if not after._is_ours(row):
            continue
        change = row[how["metric"]] / old[name(row)][how["metric"]]
        speed = change if how.get("better", "higher") == "higher" else 1 / change
        label = " · ".join(str(row[k]) for k in keys if row.get(k) is not None)
        lines.append({
            "what": label, "before": old[name(row)][how["metric"]], "after": row[how["metric"]], "speed": speed,
            "regression": speed < 1 - tolerance,
        })  # fmt: skip
    return sorted(lines, key=lambda line: line["speed"])
