"""The README's Python examples run, one after the other, in a folder with the files that they name."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import fastvoc
from fastvoc.audio import read_wav, write_wav

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_of_the_readme(tmp_path, monkeypatch):
    pytest.importorskip("diffwave", reason="pip install diffwave")
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.S | re.M)
    assert len(blocks) >= 5
    shutil.copy(ROOT / "tests/data/waveglow-a/waveglow_256channels_a.pt", tmp_path / "waveglow_256channels_universal_v5.pt")
    shutil.copytree(ROOT / "fastvoc/demo/wavenet", tmp_path / "wavenet")
    speech, rate = read_wav(ROOT / "fastvoc/demo/speech.wav")
    write_wav(tmp_path / "speech.wav", speech[8000:9600], rate)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    played = []
    names = {"play": played.append}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, example {number + 1}", "exec"), names)  # the later ones build on the earlier
        if "generate(" in block:  # and what the comments promise is so
            assert torch.equal(names["wav"], names["model"].infer(names["mel"][None], seed=1)[0])
    assert (tmp_path / "copy.wav").is_file() and fastvoc.load(tmp_path / "folder").family == "waveglow"
    assert names["audio"].shape == (1, 4 * 256) and names["audio"].isfinite().all()
    assert sum(map(len, played)) == len(names["wav"])
    conv, x = names["conv"], names["x"]
    assert torch.allclose(torch.cat([names["start"], names["end"]], -1), conv(x), atol=1e-6) and conv.weight.grad is not None
