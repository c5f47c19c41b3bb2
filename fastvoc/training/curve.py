"""The losses of a training so far, as a picture."""

from pathlib import Path

from fastvoc._atomic import atomic_path


def plot_curve(rows: list[dict], path: Path, unit: str = "") -> None:
    """rows: the lines of log.jsonl. Where a loss has parts, they get a second panel."""
    import matplotlib.figure

    parts = sorted({name for row in rows for name in row.get("parts", {})})
    figure = matplotlib.figure.Figure(figsize=(8, 7 if len(parts) > 1 else 4.5), layout="constrained")
    panels = figure.subplots(2 if len(parts) > 1 else 1, sharex=True, squeeze=False)[:, 0]
    panels[0].plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=0.8, alpha=0.6, label="training")
    held = [r for r in rows if "validation_loss" in r]
    panels[0].plot(
        [r["step"] for r in held],
        [r["validation_loss"] for r in held],
        "o-",
        markersize=3,
        label="held out, averaged weights",
    )
    panels[0].set(ylabel=f"loss ({unit})" if unit else "loss", title="Training")
    for name in parts if len(parts) > 1 else []:
        having = [r for r in rows if name in r.get("parts", {})]
        panels[1].plot([r["step"] for r in having], [r["parts"][name] for r in having], linewidth=0.8, label=name)
        panels[1].set(ylabel="parts of the losses")
    panels[-1].set(xlabel="step")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
