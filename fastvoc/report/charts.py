"""Pictures as data: URLs. Drawn twice where colours matter, for light and for dark pages."""

import base64
import io

import numpy as np

THEMES = {
    "light": {"text": "#1b1f24", "grid": "#d0d7de", "colours": ["#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#64748b", "#b45309"]},
    "dark": {"text": "#e6e8eb", "grid": "#3a4149", "colours": ["#6cb6ff", "#ff9e64", "#7ee787", "#d2a8ff", "#9aa7b5", "#f2cc60"]},
}


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def themed(draw, size=(7.2, 3.8)) -> dict[str, str]:
    """draw(axes, theme) -> {"light": url, "dark": url} of SVGs without a background of their own."""
    import matplotlib
    from matplotlib.figure import Figure

    urls = {}
    for name, theme in THEMES.items():
        with matplotlib.rc_context({"svg.hashsalt": "fastvoc", "font.size": 10}):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots()
            axes.set_prop_cycle(color=theme["colours"])
            draw(axes, theme)
            axes.set_facecolor("none")
            axes.grid(alpha=0.6, color=theme["grid"], linewidth=0.6)
            axes.tick_params(colors=theme["text"], which="both")
            for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
                part.set_color(theme["text"])
            for spine in axes.spines.values():
                spine.set_color(theme["grid"])
            if axes.get_legend_handles_labels()[0]:
                legend = axes.legend(fontsize=8, framealpha=0, labelcolor=theme["text"])
                legend.get_frame().set_linewidth(0)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        urls[name] = data_url("image/svg+xml", buffer.getvalue())
    return urls


def curves(rows: list[dict], how: dict) -> dict[str, str]:
    """One line per value of the series columns, on logarithmic axes: what is linear has slope one."""
    lines: dict[str, list] = {}
    for row in rows:
        if any(row.get(k) != v for k, v in how.get("where", {}).items()) or row.get(how["x"]) is None or row.get(how["y"]) is None:
            continue
        lines.setdefault(" ".join(str(row[c]) for c in how["series"] if row.get(c) is not None), []).append(
            (row[how["x"]], row[how["y"]])
        )

    def draw(axes, theme):
        for name, points in lines.items():
            x, y = zip(*sorted(points))
            axes.loglog(x, y, "o-", markersize=3.5, linewidth=1.4, label=name)
        axes.set(xlabel=how.get("x_label", how["x"]), ylabel=how.get("y_label", how["y"]), title=how.get("title", ""))

    return themed(draw)


def roofline(rows: list[dict], how: dict) -> dict[str, str]:
    """Operations per second over operations per byte, under the machine's ceilings."""
    points: dict[str, list] = {}
    for row in rows:
        if row.get(how["intensity"]) and row.get(how["rate"]):
            label = " ".join(str(row[c]) for c in how["label"] if row.get(c) is not None)
            points.setdefault(label, []).append((row[how["intensity"]], row[how["rate"]]))
    every = [x for some in points.values() for x, _ in some]

    def draw(axes, theme):
        x = np.geomspace(min(every) / 4, max(every) * 4, 100)
        for ceiling in how["ceilings"]:
            y = np.minimum(ceiling["peak"], x * ceiling["bandwidth"])
            axes.loglog(x, y, "--", color=theme["text"], linewidth=0.9, alpha=0.7)
            axes.annotate(ceiling["name"], (x[-1], y[-1]), color=theme["text"], fontsize=8, ha="right", va="bottom")
        for name, some in points.items():
            axes.loglog(*zip(*some), "o", markersize=5, label=name)
        axes.set(xlabel="operations per byte", ylabel="operations per second")

    return themed(draw)


def spectrogram(wav: np.ndarray, sample_rate: int) -> str:
    """A log-mel spectrogram, 80 dB below the loudest cell, as a PNG that looks right on any page."""
    from matplotlib.figure import Figure

    from fastvoc.audio.mel import MelConfig, mel_spectrogram

    config = MelConfig(sample_rate, 1024, 128, 1024, 96, 0, None, log="20log10", floor=1e-7, pad_mode="constant")
    levels = np.asarray(mel_spectrogram(np.asarray(wav, np.float64), config))
    figure = Figure(figsize=(7.2, 1.7))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(levels, origin="lower", aspect="auto", cmap="magma", vmin=levels.max() - 80, vmax=levels.max())
    axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return data_url("image/png", buffer.getvalue())
