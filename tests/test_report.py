"""The report: ratios as they were measured, one file that needs nothing else, and a real browser's opinion of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import pictures
from benchmarks.__main__ import main as benchmarks_main
from fastvoc.cli import main
from fastvoc.demo import bundled_models
from fastvoc.errors import ConfigError
from fastvoc.models import MODELS, ParallelWaveGAN
from fastvoc.report import write_report
from fastvoc.report.page import number, ratio
from fastvoc.report.results import _in_words, compare, read_results

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write(path, rows, **how):
    how = {"title": "Things <fast>", "group": ["size"], "vary": ["threads"], "metric": "rate", "unit": "things/s",
           "better": "higher", "baseline": "loop", "ours": "fastvoc"} | how
    facts = {"cpu": "a CPU", "cores": 2, "isa": "avx2", "fastvoc": "0.1", "commit": "0123456789abcdef", "dirty": False}
    content = {"name": path.stem, "environment": facts, "method": "fairly", "skipped": {"a peer": "not here"}, "rows": rows}
    path.write_text(json.dumps(content | {"report": how}))
    return path


def rows(speed=1.0):
    return [
        {"size": "big", "threads": t, "contender": name, "rate": rate * t, "n": 10**k, "intensity": 2.0**k, "flops": 1e9 * k}
        for t in (1, 2)
        for k, (name, rate) in enumerate([("loop", 10.0), ("fastvoc", 400.0 * speed), ("jit", 50.0)], 1)
    ]  # fmt: skip


def test_ratios_and_the_best_peer(tmp_path):
    result = read_results(write(tmp_path / "a.json", rows()))
    one, two = result.comparisons()
    assert (one.group, one.setting, two.setting) == ("big", "1 thread", "2 threads")
    assert [b["name"] for b in one.bars] == ["fastvoc", "jit", "loop"] and [b["ratio"] for b in one.bars] == [40, 5, 1]
    assert one.bars[1]["share"] == 50 / 400
    line = result.summary()[0]
    assert line["peer"]["name"] == "jit" and line["over_peer"] == 8 and line["ours"]["ratio"] == 40


def test_where_lower_is_better(tmp_path):
    result = read_results(write(tmp_path / "a.json", rows(), better="lower"))
    assert [b["name"] for b in result.comparisons()[0].bars] == ["loop", "jit", "fastvoc"]
    assert result.summary()[0]["over_peer"] == 10 / 400 and result.comparisons()[0].bars[2]["ratio"] == 10 / 400


def test_times_real_time(tmp_path):
    some = [
        {"size": "big", "threads": t, "contender": name, "precision": p, "rtf": rtf / t, "streams": 1}
        for t in (1, 2)
        for name, p, rtf in [("loop", "fp32", 10.0), ("loop", "bf16", 6.0),
                             ("jit", "fp32", 5.0), ("old", "fp32", 8.0), ("fastvoc", "fp32", 0.5),
                             ("fastvoc", "bf16", 0.25)]
    ]  # fmt: skip
    some += [{**some[-1], "streams": 8, "rtf": 0.001}]
    how = {"metric": "rtf", "better": "lower", "vary": ["threads", "streams"]}
    result = read_results(write(tmp_path / "a.json", some, realtime={"column": "rtf", "where": {"streams": 1}}, **how))
    (group, bars), = result.realtime().items()
    assert group == "big" and [b["name"] for b in bars] == ["loop fp32", "jit fp32", "fastvoc fp32", "fastvoc bf16"]
    assert [b["value"] for b in bars] == [0.2, 0.4, 4, 8] and [b["ours"] for b in bars] == [False, False, True, True]
    settings = {"1 thread, 1 stream": False, "2 threads, 1 stream": True, "2 threads, 8 streams": False}
    assert {c.setting: c.headline for c in result.comparisons()} == settings
    plain = read_results(write(tmp_path / "b.json", rows()))
    assert plain.realtime() == {} and not any(c.headline for c in plain.comparisons())
    html = write_report([result.path, plain.path], tmp_path / "out", audio=False).read_text()
    above, _, below = html.partition("<details>")
    assert "Our best beside the others" in above and above.count("<tr><td>big</td>") == 1
    assert "1 more settings, 20× to 20× of the best other" in below and "2 settings, 8× to 8×" in below


def test_settings_in_words():
    said = [_in_words(*c) for c in (("threads", 1), ("threads", 2), ("batch", 8), ("seconds", 0.5))]
    assert said == ["1 thread", "2 threads", "batch of 8", "0.5 seconds"]


def test_a_model_that_cannot_speak_the_clip(tmp_path):
    ParallelWaveGAN(layers=2, stacks=1, aux_channels=0).save_pretrained(tmp_path / "mute")
    with pytest.raises(ConfigError, match="mute takes no mel"):
        write_report([write(tmp_path / "a.json", rows())], tmp_path / "out", models=[tmp_path / "mute"])
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_so(tmp_path):
    path = write(tmp_path / "a.json", [r | {"disturbed_rounds_kept": 1} for r in rows()])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False, "quick": True}))
    html = write_report([path], tmp_path / "out", audio=False).read_text()
    for words in ("interrupted", "proves no speed", "In 6 of 6 rows other programs"):
        assert words in html, words
    assert read_results(write(tmp_path / "b.json", rows())).warnings == []


def test_pictures_are_drawn_from_whole_results_only(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    some = [{"model": "big", "threads": 1, "batch": 1, "contender": name, "precision": "fp32", "rtf": rtf}
            for name, rtf in [("PyTorch eager", 3.0), ("fastvoc", 0.5)]]  # fmt: skip
    path = write(tmp_path / "models-cpu.json", some)
    pictures.draw_all(tmp_path / "img")
    assert sorted(p.name for p in (tmp_path / "img").iterdir()) == ["speed-dark.svg", "speed-light.svg"]
    assert "roofline: left as it is" in capsys.readouterr().out
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    pictures.draw_all(tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_compare_finds_what_got_slower(tmp_path, capsys):
    before, slower = write(tmp_path / "a.json", rows()), write(tmp_path / "b.json", rows(0.9))
    lines = compare(read_results(before), read_results(slower))
    assert len(lines) == 2 and all(line["regression"] and line["speed"] == pytest.approx(0.9) for line in lines)
    for after, code in ((slower, 1), (before, 0)):
        with pytest.raises(SystemExit) as stopped:
            benchmarks_main(["--compare", str(before), str(after)])
        assert stopped.value.code == code
    assert "slower" in capsys.readouterr().out


def test_not_a_results_file(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="lacks environment, rows"):
        read_results(tmp_path / "x.json")
    assert main(["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "out")]) == 1
    assert "python -m benchmarks" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    path = write(tmp_path / "a.json", rows())
    assert main(["report", str(path), "-o", str(tmp_path / "out"), "--no-audio"]) == 1
    said = capsys.readouterr().err
    assert "needs matplotlib" in said and "pip install 'fastvoc[demo]'" in said and not (tmp_path / "out").exists()


def test_numbers():
    assert [number(x) for x in (None, 1234567, 0.01234, 1234.5, "x", True)] == ["", "1,234,567", "0.0123", "1,234", "x", "True"]
    assert [ratio(x) for x in (None, 2.345, 1234.0)] == ["", "2.35×", "1,234×"]


CURVES = [{"title": "Growth", "x": "n", "y": "rate", "series": ["contender"], "where": {"threads": 1}}]
ROOFLINE = {"intensity": "intensity", "rate": "flops", "label": ["contender"], "marker": "n", "where": {"threads": 1},
            "ceilings": [{"name": "fp32", "peak": 1e11}, {"name": "memory", "bandwidth": 1e10}]}  # fmt: skip
TABLES = [{"title": "Errors", "columns": {"contender": "who", "n": "how many"}, "where": {"threads": 2}}]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("matplotlib")
    pytest.importorskip("soundfile")
    folder = tmp_path_factory.mktemp("report")
    path = write(folder / "things.json", rows(), curves=CURVES, roofline=ROOFLINE, tables=TABLES)
    return write_report([path], folder / "out")


@pytest.mark.slow
def test_one_file_with_everything(page):
    html = page.read_text()
    assert [p.name for p in page.parent.iterdir()] == ["index.html"]
    links = re.findall(r'(?:src|href|srcset)="([^"]*)"', html)
    assert links and all(link.startswith(("data:", "#")) for link in links) and "@import" not in html and "<script" not in html
    assert "Things &lt;fast&gt;" in html and "Things <fast>" not in html  # what a file says is text, not markup
    unheard = [name.replace("_", " ") for name in MODELS if name not in bundled_models()]
    for words in ("Not heard,", *unheard, "40×", "a CPU", "commit 0123456789", "not here", "fairly", "how many"):
        assert words in html, words
    assert html.count("<audio") >= 3 and html.count("data:audio/flac") == html.count("<audio")  # the clip, fp32, bf16
    assert html.count("<picture>") == 2


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium to open the page in")
@pytest.mark.parametrize("window, theme", [("1280,900", "light"), ("390,800", "dark")])
def test_in_a_browser(page, tmp_path, window, theme):
    """Everything loads, every player can play, nothing is wider than the window, no complaint on the console.

    build/report-WIDTH.png is what it looked like.
    """
    from matplotlib.image import imread

    picture = ROOT / "build" / f"report-{window.partition(',')[0]}.png"
    picture.parent.mkdir(exist_ok=True)
    picture.unlink(missing_ok=True)
    probe = """<script>
    const wait = media => media.readyState >= 1 || media.error ? Promise.resolve() : new Promise(done => {
        media.addEventListener("loadedmetadata", done); media.addEventListener("error", done); });
    window.addEventListener("load", async () => {
        const sounds = [...document.querySelectorAll("audio")];
        await Promise.all(sounds.map(wait));
        document.body.dataset.found = JSON.stringify({
            seconds: sounds.map(a => a.error ? -1 : a.duration),
            pictures: [...document.images].map(i => i.naturalWidth),
            overflow: document.documentElement.scrollWidth - window.innerWidth,
        });
    });</script></body>"""
    copy = tmp_path / "index.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--timeout=20000", "--virtual-time-budget=20000", f"--window-size={window}", "--dump-dom",
         f"--blink-settings=preferredColorScheme={int(theme == 'light')}", "--hide-scrollbars", f"--screenshot={picture}",
         copy.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    found = json.loads(found[1].replace("&quot;", '"'))
    assert len(found["seconds"]) >= 3 and min(found["seconds"]) > 5
    assert found["pictures"] and min(found["pictures"]) > 100
    assert found["overflow"] <= 0
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    seen = imread(picture)[..., :3]
    assert seen.std() > 0.02  # something is on it, on the theme's ground
    assert (seen[-1, 0] * 255).round().tolist() == ([255, 255, 255] if theme == "light" else [16, 20, 24])
