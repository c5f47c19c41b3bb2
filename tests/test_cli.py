"""The command line: what each command makes, what it says to bad input, and that it leaves nothing half done behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc import _cuda
from fastvoc._op import BACKENDS, OPS
from fastvoc.audio import MelConfig, read_wav, write_wav
from fastvoc.cli import bench, main
from fastvoc.models import ParallelWaveGAN, Preprocessing, WaveNet, WaveNetConfig
from fastvoc.ops.gated_residual_stack import PRECISIONS
from fastvoc.ops.wavenet_generate import ReferencePlan, wavenet_generate
from fastvoc.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, HOP, BANDS, FLOOR = 4000, 40, 20, 1e-5
MEL = {
    "sample_rate": RATE, "n_fft": 256, "hop_length": HOP, "win_length": 160, "n_mels": BANDS,
    "fmin": 0.0, "fmax": 2000.0,
}  # fmt: skip
MODEL = {
    "out_channels": 32, "layers": 4, "stacks": 2, "residual_channels": 8, "gate_channels": 16, "skip_out_channels": 8,
    "kernel_size": 2, "cin_channels": BANDS, "cin_pad": 1, "upsample_conditional_features": True,
    "upsample_params": {"upsample_scales": [5, 8]},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """model/, speakers/ (a model of three speakers) and clip.wav, 0.6 s."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    mel = MelConfig(**MEL, floor=FLOOR, mean=(-4.0,) * BANDS, scale=(2.0,) * BANDS)
    speakers = {"gin_channels": 4, "n_speakers": 3, "use_speaker_embedding": True}
    for name, more in (("model", {}), ("speakers", speakers)):
        model = WaveNet(WaveNetConfig(**MODEL, **more))
        model.preprocessing = Preprocessing(mel, preemphasis=0.5)
        model.save_pretrained(folder / name)
    write_wav(folder / "clip.wav", sound(0.6), RATE)
    return folder


def sound(seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(7 * t)) / 2 + 0.01 * noise).astype(np.float32)


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- what the commands make ----------------------------------------------------------------------------------------


def test_demo(place, tmp_path, call):
    out = tmp_path / "out"
    gan = ParallelWaveGAN(
        layers=4, stacks=2, residual_channels=8, gate_channels=16, skip_channels=8, aux_channels=BANDS, aux_context_window=1,
        upsample_params={"upsample_scales": [5, 8]},
    )  # fmt: skip
    gan.preprocessing = Preprocessing(MelConfig(**MEL, floor=FLOOR))
    gan.save_pretrained(tmp_path / "gan")
    line = ["demo", "--model", place / "model", "--model", tmp_path / "gan", "--model", place / "model"]
    code, said, notes = call(*line, "--clip", place / "clip.wav", "--out", out, "--peer-seconds", 0.05, "--precision", "bf16")
    assert code == 0
    wavs = ["parallel_wavegan", "recording", "wavenet", "wavenet-2"]
    assert left_in(out) == sorted([*(f"{name}.wav" for name in wavs), "demo.png"])
    assert all(len(read_wav(out / f"{name}.wav", RATE)[0]) == len(sound(0.6)) for name in wavs)
    assert (out / "wavenet.wav").read_bytes() == (out / "wavenet-2.wav").read_bytes() != (out / "recording.wav").read_bytes()
    assert (out / "demo.png").read_bytes()[1:4] == b"PNG"
    assert f"fastvoc on the CPU: {fastvoc.cpu_isa()}, bf16, 1 thread\n" in said
    words = "samples/s", "real-time factor", "ratio", "1×", "log-mel distance", "PESQ-WB", "STOI", "sample by sample"
    assert all(word in said for word in words)
    assert notes.count("agree") == 3


def test_demo_of_another_sample_rate(place, tmp_path, call):
    """The clip is converted to the model's rate; a model without a convention cannot be fed."""
    write_wav(tmp_path / "faster.wav", sound(0.3), 2 * RATE)
    line = ["demo", "--clip", tmp_path / "faster.wav", "--out", tmp_path / "out", "--peer-seconds", 0.05]
    assert call(*line, "--model", place / "model")[0] == 0
    assert len(read_wav(tmp_path / "out" / "wavenet.wav", RATE)[0]) == len(sound(0.15))
    assert len(read_wav(tmp_path / "out" / "recording.wav", 2 * RATE)[0]) == len(sound(0.3))
    WaveNet(WaveNetConfig(**MODEL)).save_pretrained(tmp_path / "bare")
    code, said, err = call(*line, "--model", tmp_path / "bare")
    assert (code, said) == (1, "") and "names no mel convention" in err


def test_demo_refuses_to_time_an_engine_that_is_wrong(place, tmp_path, call, monkeypatch):
    def off_by_a_hundredth(weights, *args):
        return ReferencePlan(replace(weights, b_in=weights.b_in + 0.01), *args)

    monkeypatch.setitem(wavenet_generate.backends, "reference", off_by_a_hundredth)
    code, said, err = call("demo", "--model", place / "model", "--clip", place / "clip.wav", "--out", tmp_path / "out")
    assert code == 1 and not said
    assert "error: the compiled kernels and plain PyTorch disagree on wavenet" in err and "more than 1e-04" in err
    assert left_in(tmp_path) == []


def test_synth_from_a_wav_and_from_its_mel_is_the_same(place, tmp_path, call):
    model = ("--model", place / "model")
    assert call("mel", place / "clip.wav", "-o", tmp_path / "clip.npy", *model)[0] == 0
    mel = np.load(tmp_path / "clip.npy")
    assert mel.shape == (BANDS, 60) and mel.dtype == np.float32
    np.save(tmp_path / "raw.npy", mel * np.float32(2) - np.float32(4))  # the model's scale and mean
    sources = {"a": [place / "clip.wav"], "b": [tmp_path / "clip.npy", "--normalised"], "c": [tmp_path / "raw.npy"]}
    for name, source in sources.items():
        code, said, err = call("synth", *source, "-o", tmp_path / f"{name}.wav", *model, "--seed", 3)
        assert (code, said) == (0, "") and "0.60 s of sound" in err
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b and len(a) == len(c)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (RATE, 60 * HOP, 2)
    call("synth", place / "clip.wav", "-o", tmp_path / "d.wav", *model, "--seed", 4)
    assert (tmp_path / "d.wav").read_bytes() != a


def test_synth_goes_on_after_a_bad_input(place, tmp_path, call):
    (tmp_path / "text.wav").write_text("no sound")
    out = tmp_path / "out"
    inputs = tmp_path / "text.wav", place / "clip.wav"
    code, _, err = call("synth", *inputs, "-o", out, "--model", place / "model", "--quiet")
    assert code == 1 and left_in(out) == ["clip.wav", "failures.jsonl"]
    assert "text.wav is a text file, not sound" in err and "1 of 2 inputs failed" in err
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert (said["input"], said["error"]) == (str(tmp_path / "text.wav"), "AudioError") and "not sound" in said["message"]
    first = tmp_path / "first"
    assert call("synth", *inputs, "-o", first, "--model", place / "model", "--fail-fast")[0] == 1
    assert left_in(first) == ["failures.jsonl"]
    shutil.copy(place / "clip.wav", tmp_path / "text.wav")  # mended: the rest is skipped, and the list goes
    assert call("synth", *inputs, "-o", out, "--model", place / "model")[0] == 0
    assert left_in(out) == ["clip.wav", "text.wav"]


def test_an_output_that_exists_is_kept_unless_told_otherwise(place, tmp_path, call):
    for command in ("synth", "mel"):
        out = tmp_path / "out.wav"
        out.write_text("mine")
        line = [command, place / "clip.wav", "-o", out, "--model", place / "model"]
        code, _, err = call(*line)
        assert code == 0 and out.read_text() == "mine" and "--overwrite" in err
        assert call(*line, "--quiet")[2] == ""
        assert call(*line, "--overwrite")[0] == 0 and out.stat().st_size > 1000


def test_mel_of_a_preset(place, tmp_path, call):
    write_wav(tmp_path / "speech.wav", np.tile(sound(0.5), 6), 22050)
    assert call("mel", tmp_path / "speech.wav", "-o", tmp_path / "mel.npy", "--preset", "tacotron")[0] == 0
    assert np.load(tmp_path / "mel.npy").shape == (80, 1 + 12000 // 256)
    code, _, err = call("mel", tmp_path / "speech.wav", "-o", tmp_path / "no.npy", "--preset", "tacotrn")
    assert code == 1 and "Did you mean 'tacotron'?" in err
    code, _, err = call("mel", place / "clip.wav", "-o", tmp_path / "no.npy", "--preset", "tacotron")
    assert code == 1 and "4000 Hz, not 22050" in err and "--resample" in err
    assert not (tmp_path / "no.npy").exists()


def test_info(call, monkeypatch):
    monkeypatch.setenv("FASTVOC_SOMETHING", "7")
    code, said, _ = call("info")
    assert code == 0 and "wavenet_generate" in said and "FASTVOC_SOMETHING=7" in said and "in use" in said
    facts = json.loads(call("info", "--json")[1])
    assert facts["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "safetensors", "PyYAML", "triton"} <= set(facts["versions"])
    assert facts["threads"] == {"fastvoc": fastvoc.get_num_threads(), "torch": torch.get_num_threads()}
    assert facts["backends"]["wavenet_generate"]["reference"] is None
    assert set(facts["backends"]) == set(OPS)
    for reasons in facts["backends"].values():  # each of all backends works, or says why not
        assert set(reasons) == set(BACKENDS) and all(r is None or len(r) > 8 for r in reasons.values())
    assert facts["cuda_library"]["reason"] == _cuda.why_not() and len(facts["gpus"]) == torch.cuda.device_count()
    assert sum(row["in_use"] for row in facts["instruction_sets"]) == 1


def test_bench(place, call):
    line = ["bench", "--model", place / "model", "--seconds", 0.1]
    code, said, _ = call(*line)
    assert code == 0 and said.count(" fastvoc ") == 6 and said.count(" PyTorch ") == 2
    facts = json.loads(call(*line, "--json")[1])
    assert len(facts["cases"]) == 8 and all(len(case["rates"]) == 5 for case in facts["cases"])


SMALL = {
    "parallel_wavenet": {"dilations": [[1, 2]], "residual_channels": 8, "gate_channels": 16, "skip_channels": 8},
    "waveglow": {"n_flows": 2, "n_layers": 2, "n_channels": 8},
    "parallel_wavegan": {"layers": 2, "stacks": 1, "residual_channels": 8, "gate_channels": 16, "skip_channels": 8},
    "diffwave": {"layers": 2, "residual_channels": 8},
}


def test_bench_of_all_five(place, call, monkeypatch):
    monkeypatch.setattr(bench, "WAVENET", place / "model")
    monkeypatch.setattr(bench, "RANDOM", {name: (family, SMALL[family]) for name, (family, _) in bench.RANDOM.items()})
    code, said, _ = call("bench", "--seconds", 0.1)
    assert code == 0 and said.count(" PyTorch ") == 5 and said.count(" fastvoc ") == 3 + 4 * len(PRECISIONS)
    assert {family for family, _ in bench.RANDOM.values()} | {"wavenet"} == set(fastvoc.models.MODELS)
    monkeypatch.setattr(bench.Case, "generate", lambda case, n: torch.full((1, n), 1.0 + (case.backend == bench.ENGINE)))
    code, _, err = call("bench", "--seconds", 0.1)
    assert code == 1 and "in fp32 and plain PyTorch disagree" in err


@pytest.fixture
def training(tmp_path):
    recipe = {
        "family": "wavenet", "model": MODEL, "mel": {"name": "tacotron", **MEL},
        "training": {
            "seed": 1, "steps": 3, "batch_size": 1, "segment_frames": 5, "learning_rate": 1e-3, "warmup_steps": 1,
            "half_life_steps": 100, "minimum_learning_rate": 1e-5, "gradient_clip": 1.0, "ema_decay": 0.9,
            "validate_every": 3, "checkpoint_every": 3, "sample_every": 3,
        },
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "data").mkdir()
    write_wav(tmp_path / "data" / "a.wav", sound(0.5), RATE)
    folders = ["--data", tmp_path / "data", "--out", tmp_path / "run"]
    return ["train", "wavenet", *folders, "--recipe", tmp_path / "recipe.json"]


def test_training_is_interrupted_and_resumed(training, tmp_path, call, monkeypatch):
    update = Trainer._update

    def interrupted(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        code, _, err = call(*training)
    assert code == 130 and "stopped at step 2" in err and "resumes from" in err
    code, _, err = call(*training)
    assert code == 0 and "resuming at step 2" in err
    assert fastvoc.load(tmp_path / "run" / "model").config.layers == 4
    code, _, err = call(*training)
    assert code == 0 and "at step 3 already" in err


def test_bad_training(training, tmp_path, call):
    code, _, err = call(*training[:-1], "nothing")
    assert code == 1 and "there is no recipe nothing" in err and "wavenet-demo" in err
    (tmp_path / "recipe.json").write_text('{"family": "wavenet"}')
    code, _, err = call(*training)
    assert code == 1 and "lacks model, mel, training" in err
    assert not (tmp_path / "run").exists()
    assert call("train", "wavenett", *training[2:])[0] == 2


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.fixture
def synth(place, tmp_path, call):
    """synth(input, *options) must fail: -> stderr, after seeing that it left nothing in out/"""
    out = tmp_path / "out"
    out.mkdir()

    def run(source, *options, model=place / "model"):
        code, said, err = call("synth", source, "-o", out / "x.wav", "--model", model, *options)
        assert (code, said, left_in(out)) == (1, "", [])
        assert err.startswith("error: ") and err.count("error:") == 1
        return err

    return run


def test_bad_wavs(place, tmp_path, call, synth):
    wrong = tmp_path / "wrong.wav"
    write_wav(wrong, sound(0.5), 8000)
    assert "8000 Hz, not 4000" in (err := synth(wrong)) and "hint: Pass --resample" in err
    whole = (place / "clip.wav").read_bytes()
    wrong.write_bytes(whole[:20])
    assert "wrong.wav" in synth(wrong)
    wrong.write_bytes(b"")
    assert "wrong.wav is empty" in synth(wrong)
    assert "Did you mean clip.wav?" in synth(place / "clp.wav")
    write_wav(wrong, sound(0.02), RATE)
    assert "80 samples; n_fft 256 needs at least 129" in synth(wrong)
    wrong.write_bytes(whole[:2044])  # a length beyond the end: what is there is used
    code, _, err = call("synth", wrong, "-o", tmp_path / "y.wav", "--model", place / "model")
    assert code == 0 and "warning: " in err and "shorter than its header claims" in err
    assert len(read_wav(tmp_path / "y.wav")[0]) == 1000


def test_resample_and_mix(place, tmp_path, call):
    pytest.importorskip("soxr")
    with wave.open(str(tmp_path / "stereo.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.repeat(sound(0.6), 2) * 32767).astype("<i2").tobytes())
    line = ["synth", tmp_path / "stereo.wav", "-o", tmp_path / "y.wav", "--model", place / "model", "--resample"]
    code, _, err = call(*line)
    assert code == 1 and "2 channels" in err and "--mix" in err
    assert call(*line, "--mix")[0] == 0
    assert len(read_wav(tmp_path / "y.wav", RATE)[0]) == 1200


def test_bad_mels(tmp_path, call, place, synth):
    path = tmp_path / "mel.npy"

    def said(mel, *options):
        np.save(path, mel, allow_pickle=True)
        return synth(path, *options)

    good = np.full((BANDS, 7), -5, np.float32)
    assert "(10, 7), expected (20, n_frames)" in said(good[:10]) and "made for another model" in said(good[:10])
    assert "transpose it" in said(good.T)
    assert "(1, 20, 7), expected (20, n_frames)" in said(good[None])
    assert "0 frames" in said(good[:, :0])
    nan = good.copy()
    nan[3, 4] = np.nan
    assert "nan at index (3, 4)" in said(nan) and "mel.npy" in said(nan)
    assert "-80.00" in said(good * 16) and "at least -11.51" in said(good * 16)
    assert "holds int64" in said(good.astype(int))
    assert "object" in said(np.array([{}, None]))
    np.save(path, good + 6)
    code, _, err = call("synth", path, "-o", tmp_path / "y.wav", "--model", place / "model")
    assert code == 0 and "is it linear?" in err


@pytest.mark.parametrize("header", [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-20, -7)}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 70}}}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (20, 7)}",
    "{'descr': '<f4', 'shape': (20, 7)}",
    "{'descr': '<q9', 'fortran_order': False, 'shape': (20, 7)}",
    "__import__('os').system('true')",
    "((((((((((",
])  # fmt: skip
def test_npy_headers_that_lie(tmp_path, synth, header):
    path = tmp_path / "mel.npy"
    body = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + bytes(20 * 7 * 4))
    err = synth(path)
    assert "mel.npy" in err and "error: unexpected" not in err  # Python itself may say it within


@pytest.mark.parametrize("cut", [0, 3, 7, 9, 40, 128, 200])
def test_npy_that_ends_early(tmp_path, synth, cut):
    path = tmp_path / "mel.npy"
    np.save(path, np.full((BANDS, 7), -5, np.float32))
    path.write_bytes(path.read_bytes()[:cut])
    err = synth(path)
    assert "mel.npy" in err and "unexpected" not in err


def test_bad_options(place, synth):
    clip, speakers = place / "clip.wav", place / "speakers"
    assert "temperature must be finite and at least 0, got -1.0" in synth(clip, "--temperature", -1)
    assert "speaker [3] is out of range: the model knows 0…2" in synth(clip, "--speaker", 3, model=speakers)
    assert "conditioned on a speaker" in (err := synth(clip, model=speakers)) and "hint: Speakers are numb" in err
    assert "without speakers" in synth(clip, "--speaker", 0)


def test_bad_models(place, tmp_path, synth):
    clip, broken = place / "clip.wav", tmp_path / "broken"
    assert "no such file or folder" in (err := synth(clip, model=place / "modle")) and "did you mean model?" in err
    shutil.copytree(place / "model", broken)

    def with_config(**changes):
        values = json.loads((place / "model" / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**values, **changes}))
        return synth(clip, model=broken)

    assert "unknown key 'layer'" in (err := with_config(layer=3)) and "hint: Did you mean 'layers'?" in err
    assert "model.safetensors: " in (err := with_config(residual_channels=16)) and "the config makes it" in err
    assert "unsupported architecture 'hifigan'" in with_config(family="hifigan")
    weights = (broken / "model.safetensors").read_bytes()
    shutil.copy(place / "model" / "config.json", broken)
    (broken / "model.safetensors").write_bytes(weights[:-100])
    assert "is damaged" in synth(clip, model=broken)
    (broken / "model.safetensors").unlink()
    assert "no weights" in synth(clip, model=broken)
    (broken / "config.json").unlink()
    assert "no config.json" in (err := synth(clip, model=broken)) and "hint: Expected config.json" in err


def test_bad_outputs(place, tmp_path, call):
    (tmp_path / "file").write_text("mine")
    clip, model = place / "clip.wav", ["--model", place / "model"]
    before = left_in(place), left_in(tmp_path)
    for line, words in (
        (["synth", clip, "-o", tmp_path / "no" / "x.wav", *model], "does not exist"),
        (["synth", clip, "-o", tmp_path / "file" / "x.wav", *model], "is not a folder"),
        (["synth", clip, "-o", tmp_path / "x.mp3", *model], ".wav or .flac"),
        (["synth", clip, clip, "-o", tmp_path / "out", *model], "would both be written"),
        (["synth", clip, "-o", place, *model], "replaced by its own synthesis"),
        (["synth", clip, "-o", "/proc/x.wav", *model], "/proc"),
        (["mel", clip, "-o", tmp_path / "no" / "x.npy", *model], "does not exist"),
        (["mel", clip, "-o", "/proc/x.npy", *model], "/proc"),
        (["demo", "--clip", clip, "--out", tmp_path / "file", *model], "is not a folder"),
        (["demo", "--clip", clip, "--out", tmp_path / "no" / "out", *model], "does not exist"),
        (["demo", "--clip", tmp_path / "no.wav", "--out", tmp_path / "out", *model], "does not exist"),
        (["train", "wavenet", "--data", tmp_path, "--out", tmp_path / "no" / "out"], "does not exist"),
    ):
        code, _, err = call(*line)
        assert code == 1 and words in err, (line, err)
    assert (left_in(place), left_in(tmp_path)) == before


@pytest.mark.parametrize("line", [
    "", "sing", "synth a.wav -o x.wav", "synth a.wav --model m", "info --threads 2", "bench --seconds 0",
    "demo --precision fp8", "bench --threads 0", "bench --threads -1", "bench --threads 1e6",
    "bench --threads 1000000", "demo --seed -1", "demo --peer-seconds nan", "mel a.wav -o b.npy",
    "mel a.wav -o b.npy --model m --preset r9y9", "train wavenet --steps 0",
])  # fmt: skip
def test_wrong_calls(call, line):
    code, said, err = call(*line.split())
    assert (code, said) == (2, "") and "usage: fastvoc" in err and "error: " in err


def test_version_and_debug(call, capsys, tmp_path):
    assert call("--version") == (0, f"fastvoc {fastvoc.__version__}\n", "")
    for line in (["--debug", "mel", "no.wav"], ["mel", "no.wav", "--debug"]):
        assert main([*line, "-o", str(tmp_path / "x.npy"), "--preset", "r9y9"]) == 1
        assert "Traceback" in capsys.readouterr().err


# ---- as a process --------------------------------------------------------------------------------------------------


def process(*arguments, **options) -> subprocess.Popen:
    root = Path(fastvoc.__file__).parent.parent
    path = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH")) if p)
    command = [sys.executable, "-m", "fastvoc", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "FASTVOC_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_an_error_is_one_line_and_exit_code_1(tmp_path):
    run = process("synth", "no.wav", "-o", tmp_path / "x.wav", "--model", tmp_path / "no")
    said, err = run.communicate(timeout=120)
    assert (run.returncode, said) == (1, "")
    assert err == f"error: no such file or folder: {tmp_path / 'no'}\n"


def test_a_reader_that_has_seen_enough():
    run = process("info")
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait(120) == 1


@pytest.mark.parametrize("kind, code, words", [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")])
@pytest.mark.parametrize("command", ["demo", "synth"])
def test_signals(place, tmp_path, command, kind, code, words):
    """In mid-generation: what was whole before stays, nothing half done does."""
    write_wav(tmp_path / "long.wav", np.tile(sound(1), 100 if command == "demo" else 400), RATE)
    if command == "demo":
        line = ["--model", place / "model", "--clip", tmp_path / "long.wav", "--out", tmp_path / "out", "--peer-seconds", 1000]
        begun, left = "agree", None
    else:  # the first input is done, the second has seconds to go
        line = [place / "clip.wav", tmp_path / "long.wav", "-o", tmp_path / "out", "--model", place / "model"]
        begun, left = "0.60 s of sound", ["clip.wav"]
    # A shell's background job starts with SIGINT ignored, and its children inherit that: Ctrl-C is heard again
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    run = process(command, *line, preexec_fn=heard)
    assert any(begun in line for line in run.stderr)
    run.send_signal(kind)
    err = run.stderr.read()
    assert (run.wait(120), err) == (code, words)
    assert (tmp_path / "out").exists() == (left is not None) and (left is None or left_in(tmp_path / "out") == left)


@pytest.mark.parametrize("kind, code, words", [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")])
def test_a_signal_while_a_file_is_opened(place, tmp_path, kind, code, words):
    """wave's reader, cut off half built, complains when it is deleted: no user is to see that."""
    script = """
import signal, sys, wave
from fastvoc.cli import main
wave.Wave_read.__init__ = lambda *_: signal.raise_signal(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + script
    line = ["mel", place / "clip.wav", "-o", tmp_path / "mel.npy", "--preset", "r9y9"]
    command = [sys.executable, "-c", script, int(kind), *line]
    run = subprocess.run([str(word) for word in command], cwd=Path(fastvoc.__file__).parent.parent, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (code, words)
