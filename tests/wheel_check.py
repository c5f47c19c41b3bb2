"""What a fresh install must do, from any folder: import, say what it can run, give a golden's exact audio, train a layer.

Run by itself with nothing but the wheel's declared needs: `python wheel_check.py`; test_wheel.py and cibuildwheel do.
`python wheel_check.py cuda` for the wheel with the CUDA library.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fastvoc
from fastvoc.audio.mulaw import mulaw_encode
from fastvoc.layers import CausalConv1d, GatedActivation, GatedResidualStack

GOLDEN = Path(__file__).parent / "data" / "nv-wavenet-a"


def main() -> None:
    package = Path(fastvoc.__file__).parent
    assert "site-packages" in package.parts, f"this is no installed fastvoc: {package}"
    assert (package / "py.typed").is_file() and (package / "_C.pyi").is_file() and (package / "demo" / "speech.wav").is_file()
    command = Path(sys.executable).parent / "fastvoc"
    facts = json.loads(subprocess.run([command, "info", "--json"], check=True, capture_output=True, text=True).stdout)
    assert facts["versions"]["fastvoc"] == fastvoc.__version__, facts
    in_use = [row for row in facts["instruction_sets"] if row["in_use"]]
    assert [row["name"] for row in in_use] == [fastvoc.cpu_isa()] and not in_use[0]["emulated"], facts
    assert not any(row["emulated"] for row in facts["instruction_sets"]), "a wheel has no emulated instruction sets"

    library = facts["cuda_library"]
    if sys.argv[1:] == ["cuda"]:  # it is found; that there is no GPU is said, and hinders nothing
        assert library["path"] == str(package / "libfastvoc_cuda.so"), library
        assert library["reason"] == (None if torch.cuda.is_available() else "torch sees no GPU"), library
    else:
        assert library["path"] is None and "without its CUDA library" in library["reason"], library

    with np.load(GOLDEN / "io.npz") as data:
        cond, noise = torch.from_numpy(data["cond_input"]), torch.from_numpy(data["ar_selectors"])[..., None]
        classes = torch.from_numpy(data["ar_class"]).long()
    model = fastvoc.load(GOLDEN / "model.pt")
    wav = model.infer(layer_conditioning=cond.permute(1, 2, 0, 3), noise=noise, initial=128)
    assert torch.equal(mulaw_encode(wav, 256), classes), "the golden audio differs"
    demo = fastvoc.load(package / "demo" / "wavenet")
    wav = demo.infer(torch.zeros(1, demo.n_mels, 3), seed=1, precision="bf16")
    assert wav.shape == (1, 3 * demo.hop_length) and wav.isfinite().all()

    x = torch.randn(2, 8, 50, requires_grad=True)
    GatedActivation()(CausalConv1d(8, 16, 3, dilation=2)(x)).sum().backward()
    assert x.grad.abs().sum() > 0
    stack, x = GatedResidualStack(8, 16, 4, 0, 3, [1, 2, 4]), torch.randn(2, 30, 8)
    assert torch.allclose(stack.infer(x), stack(x), atol=1e-5)
    print("ok", fastvoc.__version__, fastvoc.cpu_isa(), package)


if __name__ == "__main__":
    main()
