"""Pictures as data: URLs. Drawn twice where colours matter, for light and for dark pages."""

import base64
import io

import numpy as np

from fastvoc.report.results import matches

THEMES = {  # theirs: the bars of others
    "light": {"text": "#1b1f24", "grid": "#d0d7de", "theirs": "#9aa7b5",
              "colours": ["#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#0e9bb8", "#c79a00", "#db2777", "#64748b"]},
    "dark": {"text": "#e6e8eb", "grid": "#3a4149", "theirs": "#5b6672",
             "colours": ["#6cb6ff", "#ff9e64", "#7ee787", "#d2a8ff", "#67e8f9", "#f2cc60", "#f9a8d4", "#9aa7b5"]},
}


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def svgs(draw, size=(5.6, 3.6), grid: str = "both") -> dict[str, bytes]:
    """draw(axes, theme) -> {"light": …, "dark": …}: SVGs without a background of their own. grid: "both", "x", "y"."""
    import matplotlib
    from matplotlib.figure import Figure

    made = {}
    for name, theme in THEMES.items():
        with matplotlib.rc_context({"svg.hashsalt": "fastvoc", "font.size": 10}):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.subplots()
            axes.set_prop_cycle(color=theme["colours"])
            draw(axes, theme)
            axes.set_facecolor("none")
            axes.grid(axis=grid, alpha=0.6, color=theme["grid"], linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(colors=theme["text"], which="both")
            for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
                part.set_color(theme["text"])
            for spine in axes.spines.values():
                spine.set_color(theme["grid"])
            named = axes.get_legend_handles_labels()
            if axes.get_legend() is None and named[0]:  # below the picture: inside, it would hide a part of it
                figure.legend(*named, loc="outside lower left", ncols=2, fontsize=8, frameon=False, labelcolor=theme["text"])
                figure.set_figheight(size[1] + 0.17 * -(-len(named[0]) // 2))
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        made[name] = buffer.getvalue()
    return made


def themed(*args, **how) -> dict[str, str]:
    """`svgs` as data: URLs."""
    return {name: data_url("image/svg+xml", svg) for name, svg in svgs(*args, **how).items()}


def curves(rows: list[dict], how: dict):
    """One line per value of the series columns; on logarithmic axes, unless `axes` is "linear", what is linear has slope one.

    -> what `svgs` draws, or None where no row has a point
    """
    lines: dict[str, list] = {}
    for row in rows:
        if not matches(row, how.get("where", {})) or row.get(how["x"]) is None or row.get(how["y"]) is None:
            continue
        lines.setdefault(", ".join(str(row[c]) for c in how["series"] if row.get(c)), []).append((row[how["x"]], row[how["y"]]))
    if not lines:
        return None

    def draw(axes, theme):
        for n, (name, points) in enumerate(lines.items()):
            x, y = zip(*sorted(points))
            style = "-" if n < len(theme["colours"]) else "--"  # the colours begin anew
            axes.plot(x, y, "o" + style, markersize=3.5, linewidth=1.4, label=name)
        if how.get("axes") == "linear":
            axes.set_xlim(0)
            axes.set_ylim(0)
            whole = all(isinstance(x, int) for points in lines.values() for x, _ in points)
            axes.xaxis.get_major_locator().set_params(integer=whole)
        else:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                plain_numbers(axis)
        axes.set(xlabel=how.get("x_label", how["x"]), ylabel=how.get("y_label", how["y"]))

    return draw


def plain_numbers(axis) -> None:
    """100,000 instead of 10⁵ on a logarithmic axis, and 2, 3, 5 between where it spans little."""
    low, high = axis.get_view_interval()
    between = (2, 3, 5) if high < 30 * low else ()
    axis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    axis.set_minor_formatter(lambda value, _: f"{value:,.12g}" if round(value / 10 ** np.floor(np.log10(value))) in between else "")


def roofline(rows: list[dict], how: dict):
    """Operations per second over operations per byte, under the machine's ceilings: peaks, and bandwidths.

    -> what `svgs` draws, or None where no row has a point
    """
    marker = how.get("marker")
    points: dict[tuple, list] = {}
    for row in rows:
        if row.get(how["intensity"]) and row.get(how["rate"]) and matches(row, how.get("where", {})):
            label = " ".join(str(row[c]) for c in how["label"] if row.get(c) is not None)
            points.setdefault((label, row.get(marker)), []).append((row[how["intensity"]], row[how["rate"]] / 1e9))
    if not points:
        return None
    every = [p for some in points.values() for p in some]
    peaks = {c["name"]: c["peak"] / 1e9 for c in how["ceilings"] if "peak" in c}
    slopes = {c["name"]: c["bandwidth"] / 1e9 for c in how["ceilings"] if "bandwidth" in c}
    left, right = min(x for x, _ in every) / 2, max(max(x for x, _ in every) * 2, max(peaks.values()) / min(slopes.values()) * 1.5)

    low = min(y for _, y in every) / 2

    def draw(axes, theme):
        faint = dict(color=theme["text"], linewidth=0.9, alpha=0.7)
        words = dict(color=theme["text"], fontsize=7.5)
        for name, peak in peaks.items():
            x = peak / max(slopes.values())
            axes.loglog([x, right], [peak, peak], "-", **faint)
            axes.annotate(name, (right, peak), xytext=(-4, 1), textcoords="offset points", ha="right", va="bottom", **words)
        for n, (name, slope) in enumerate(slopes.items()):
            x = max(peaks.values()) / slope
            axes.loglog([left, x], [left * slope, x * slope], "--", **faint)
            # Caches are nearly as fast as one another: one name above its line, the next one below
            at = max(left, low / slope) * 1.4
            axes.annotate(name, (at, at * slope), xytext=(0, -5 if n % 2 else 3), textcoords="offset points", rotation=45,
                          transform_rotates_text=True, rotation_mode="anchor", va=("bottom", "top")[n % 2], **words)  # fmt: skip
        families = list(dict.fromkeys(label for label, _ in points))
        kinds = list(dict.fromkeys(kind for _, kind in points))
        for (label, kind), some in points.items():
            colour = theme["colours"][families.index(label) % len(theme["colours"])]
            axes.loglog(*zip(*some), MARKERS[kinds.index(kind) % len(MARKERS)], color=colour, markersize=5.5)
        for n, label in enumerate(families):
            axes.plot([], [], "o", color=theme["colours"][n % len(theme["colours"])], label=label)
        for n, kind in enumerate(kinds if marker else ()):
            axes.plot([], [], MARKERS[n % len(MARKERS)], color=theme["text"], label=kind)
        axes.set_xlim(left, right)
        axes.set_ylim(low, max(max(y for _, y in every), *peaks.values()) * 2)
        for axis in (axes.xaxis, axes.yaxis):
            plain_numbers(axis)
        axes.set(xlabel="operations per byte", ylabel="GFLOP/s")
        axes.legend(fontsize=8, framealpha=0, labelcolor=theme["text"], loc="lower right")

    return draw


MARKERS = "os^Dv"


def realtime(groups: dict[str, list[dict]]):
    """Bars of how many times faster than real time: {model: [{"name", "value", "ours"}]}, best last. Logarithmic."""

    def draw(axes, theme):
        y, ticks, names = 0.0, [], []
        longest = max(b["value"] for bars in groups.values() for b in bars)
        for group, bars in groups.items():
            axes.annotate(group, (0, y), xycoords=("axes fraction", "data"), xytext=(0, -1), textcoords="offset points",
                          color=theme["text"], fontsize=9.5, fontweight="bold", va="center")  # fmt: skip
            y -= 1
            for bar in bars:
                axes.barh(y, bar["value"], 0.78, color=theme["colours"][0] if bar["ours"] else theme["theirs"])
                words = f"{bar['value']:,.0f}" if bar["value"] >= 20 else f"{bar['value']:.2g}"
                axes.annotate(f"{words}×", (bar["value"], y), xytext=(4, 0), textcoords="offset points", color=theme["text"],
                              fontsize=8.5, va="center", fontweight="bold" if bar["ours"] else "normal")  # fmt: skip
                ticks.append(y)
                names.append(bar["name"])
                y -= 1
            y -= 0.35
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.set_yticks(ticks, names, fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.axvline(1, color=theme["text"], linewidth=0.9, linestyle="--")
        axes.set_ylim(y + 0.6, 0.6)
        axes.set_xlim(right=longest * 1.8)
        axes.set_xlabel("seconds of sound per second of computing; dashed: real time", loc="right")  # in the middle it is cut off
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)

    return draw


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
