"""One self-contained HTML page from benchmark results: ratios, bars, curves, rooflines, errors, and sound to listen to."""

from fastvoc.report.page import write_report

__all__ = ["write_report"]
