"""fastvoc synth with every family: its options, what a mel declares, devices and backends."""

import json

import numpy as np
import pytest
import torch

import fastvoc
from fastvoc.audio import MelConfig, read_wav, write_wav
from fastvoc.models import DiffWave, ParallelWaveGAN, Preprocessing, WaveNet
from tests.goldens import Golden

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, HOP, BANDS = 4000, 6, 10
MEL = MelConfig(
    sample_rate=RATE, n_fft=256, hop_length=HOP, win_length=160, n_mels=BANDS, fmin=0.0, fmax=2000.0,
    mean=(-4.0,) * BANDS, scale=(2.0,) * BANDS,
)  # fmt: skip


@pytest.fixture
def call(call):
    """call(*arguments) -> (exit code, stderr): these commands print nothing"""

    def run(*arguments):
        code, said, err = call(*arguments)
        assert not said
        return code, err

    return run


@pytest.fixture
def wavenet(tmp_path):
    torch.manual_seed(0)
    model = WaveNet(
        out_channels=16, layers=2, stacks=1, residual_channels=4, gate_channels=8, skip_out_channels=4, kernel_size=2,
        cin_channels=BANDS, upsample_conditional_features=True, upsample_params={"upsample_scales": [2, 3]},
    )  # fmt: skip
    model.preprocessing = Preprocessing(MEL)
    model.save_pretrained(tmp_path / "wavenet")
    write_wav(tmp_path / "clip.wav", (np.sin(np.arange(1200) / 3) / 3).astype(np.float32), RATE)
    return tmp_path / "wavenet"


# ---- the families --------------------------------------------------------------------------------------------------

# case and file, the golden's mel, synth's options, infer's
STUDENT, TEACHER = "student_checkpoint_step000210000_ema.pth", "teacher_checkpoint_step000654321_ema.pth"
FAMILIES = {
    "waveglow-a/waveglow_256channels_a.pt": ("infer_mel", ["--sigma", 0.8], {"sigma": 0.8}),
    "waveglow-a/waveglow_tiny_legacy.pt": ("tiny_legacy_infer_mel", [], {}),
    f"clarinet-a/{TEACHER}": ("gen_mel", ["--temperature", 0.5], {"temperature": 0.5}),
    f"clarinet-a/{STUDENT}": ("gen_mel", ["--temperature", 0.5], {"temperature": 0.5}),
    "nv-wavenet-a/wavenet_120000": ("ar_features", [], {}),
    "diffwave-lmnt-a": ("fast_spec", ["--schedule", "fast"], {"schedule": "fast"}),
    "diffwave-philsyn-a": ("sample_mel", ["--schedule", "0.001,0.05,0.3"], {"schedule": [0.001, 0.05, 0.3]}),
    "pwg-a": ("infer_mel", [], {}),
    "wavenet-r9y9-a": ("mel_raw", ["--temperature", 0.5], {"temperature": 0.5}),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family(tmp_path, call, case):
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    golden, file = Golden(case.partition("/")[0]), case.partition("/")[2]
    name, line, how = FAMILIES[case]
    path = golden.path(file) if file else golden.folder
    options = {"teacher": golden.path(TEACHER)} if file == STUDENT else {}
    model = fastvoc.load(path, **options)
    mel = golden[name].reshape(-1, *golden[name].shape[-2:])[0].astype(np.float32)
    mel = mel if mel.shape[0] == model.n_mels else mel.T
    np.save(tmp_path / "x.npy", mel)
    line += [part for key, value in options.items() for part in (f"--{key}", value)]
    code, err = call("synth", tmp_path / "x.npy", "-o", tmp_path / "x.wav", "--model", path, "--seed", 5, *line)
    assert code == 0, err
    taken = model.mel_config.normalise(torch.from_numpy(np.ascontiguousarray(mel)))
    want = model.vocode(taken[None], seed=5, threads=1, **how)[0]
    got, _ = read_wav(tmp_path / "x.wav", model.sample_rate)
    assert len(got) == len(want) == mel.shape[1] * model.hop_length and got.std() > 0
    assert np.abs(got - np.clip(want, -1, 1)).max() < 2e-4


def test_denoise_is_waveglows(tmp_path, call):
    golden = Golden("waveglow-a")
    path = golden.path("waveglow_256channels_a.pt")
    np.save(tmp_path / "x.npy", golden["infer_mel"][0])
    for name, more in (("a", []), ("b", ["--denoise", 0]), ("c", ["--denoise", 1])):
        assert call("synth", tmp_path / "x.npy", "-o", tmp_path / f"{name}.wav", "--model", path, *more)[0] == 0
    a, b, c = (read_wav(tmp_path / f"{name}.wav", 22050)[0] for name in "abc")
    assert np.abs(a - b).max() < 1e-3 < np.abs(a - c).max()
    code, err = call("synth", tmp_path / "x.npy", "-o", tmp_path / "d.wav", "--model", path, "--denoise", -1)
    assert code == 1 and "strength" in err


def test_statistics_are_applied_once(tmp_path, call):
    """Parallel WaveGAN's model has them itself: a normalised mel must reach it as one."""
    pytest.importorskip("yaml")
    pytest.importorskip("h5py")
    golden = Golden("pwg-a")
    model = fastvoc.load(golden.folder)
    mel = golden.tensor("infer_mel").T[None] if golden["infer_mel"].shape[1] == model.n_mels else golden.tensor("infer_mel")
    mel = mel.reshape(1, model.n_mels, -1)
    np.save(tmp_path / "raw.npy", mel[0].numpy())
    np.save(tmp_path / "done.npy", ((mel - model.mean[:, None]) / model.scale[:, None])[0].numpy())
    line = ["--model", golden.folder, "--seed", 1]
    assert call("synth", tmp_path / "raw.npy", "-o", tmp_path / "a.wav", *line)[0] == 0
    assert call("synth", tmp_path / "done.npy", "-o", tmp_path / "b.wav", *line, "--normalised")[0] == 0
    a, b = (read_wav(tmp_path / f"{name}.wav", model.sample_rate)[0] for name in "ab")
    assert np.abs(a - b).max() < 1e-3 and a.std() > 0


SMALL = {
    "wavenet": lambda: WaveNet(
        out_channels=16, layers=2, stacks=1, residual_channels=4, gate_channels=8, skip_out_channels=4, kernel_size=2,
        cin_channels=-1,
    ),
    "parallel_wavegan": lambda: ParallelWaveGAN(
        layers=2, stacks=1, residual_channels=4, gate_channels=8, skip_channels=4, aux_channels=0,
    ),
    "diffwave": lambda: DiffWave(n_mels=0, layers=2, residual_channels=4, audio_len=50),
    "diffwave of classes": lambda: DiffWave(n_mels=0, n_labels=3, layers=2, residual_channels=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_that_takes_no_mel(tmp_path, call, kind):
    """--seconds and no input: what infer(n_samples=…) gives, at the model's rate or at --rate."""
    torch.manual_seed(0)
    model = SMALL[kind]().eval()
    model.save_pretrained(tmp_path / "model")
    out, line = tmp_path / "x.wav", ["--model", tmp_path / "model", "--seed", 5]
    label = ["--label", 2] if kind.endswith("classes") else []
    given = {"label": torch.tensor([2])} if label else {}

    def heard(n_samples, rate):
        want = model.infer(n_samples=n_samples, seed=5, threads=1, **given)[0].numpy()
        got, own = read_wav(out)
        assert (own, len(got)) == (rate, n_samples) and np.abs(got - np.clip(want, -1, 1)).max() < 1e-4 and got.std() > 0

    code, err = call("synth", "-o", out, "--seconds", 0.03, *line, *label)
    assert code == 1 and "comes without a sample rate" in err and "--rate HZ" in err
    code, err = call("synth", "-o", out, "--seconds", 0.03, "--rate", RATE, *line, *label)
    assert code == 0 and "0.03 s of sound" in err
    heard(120, RATE)

    model.preprocessing = Preprocessing(MEL)
    model.save_pretrained(tmp_path / "model")
    code, err = call("synth", "-o", out, *line, *label, "--overwrite")
    if kind == "diffwave":  # which knows its length
        assert code == 0
        heard(50, RATE)
    else:
        assert code == 1 and "does not say how long" in err and "--seconds" in err
    assert call("synth", "-o", out, "--seconds", 0.02, *line, *label, "--overwrite")[0] == 0
    heard(80, RATE)

    out.unlink()
    for more, words in (
        (["--seconds", 0.02, "--rate", 8000], f"works at {RATE} Hz, not 8000"),
        ([tmp_path / "clip.wav"], "takes no mel, but"),
        ([tmp_path / "clip.wav", "--seconds", 1], "takes no mel, but"),
    ):
        code, err = call("synth", *more, "-o", out, *line, *label)
        assert code == 1 and words in err and err.count("error:") == 1 and not out.exists()
    assert "is a .wav or .flac file\n" in call("synth", "-o", tmp_path, "--seconds", 0.02, *line)[1]


def test_a_model_that_takes_a_mel_wants_an_input(tmp_path, call, wavenet):
    line = ["-o", tmp_path / "x.wav", "--model", wavenet]
    for more, words in (
        ([], "makes sound from a mel, and no input is named"),
        (["--seconds", 1], "makes sound from a mel, and no input is named"),
        ([tmp_path / "clip.wav", "--seconds", 1], "--seconds: "),
        ([tmp_path / "clip.wav", "--rate", RATE], "--rate: "),
        ([tmp_path / "clip.wav", "--label", 1], "--label: a wavenet model takes no label"),
    ):
        code, err = call("synth", *more, *line)
        assert code == 1 and words in err and err.count("error:") == 1 and not (tmp_path / "x.wav").exists()
    assert call("synth", "--seconds", 0, *line)[0] == call("synth", "--rate", 0.5, *line)[0] == 2


@pytest.mark.parametrize("line, words", [
    (["--sigma", 0.6], "--sigma: a wavenet model takes no sigma"),
    (["--schedule", "fast"], "--schedule: a wavenet model takes no schedule"),
    (["--denoise", 0.1], "--denoise: a wavenet model has no hum"),
    (["--temperature", "nan"], "temperature must be finite"),
    (["--speaker", 1], "without speakers"),
    (["--teacher", "x.pth"], "takes no options"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--device", "gpu"], "--device gpu"),
    (["--backend", "triton"], "has no 'triton' backend"),
])  # fmt: skip
def test_options_that_do_not_fit(tmp_path, call, wavenet, line, words):
    inputs = [tmp_path / "clip.wav", tmp_path / "missing.wav"]
    code, err = call("synth", *inputs, "-o", tmp_path / "out", "--model", wavenet, *line)
    assert code == 1 and words in err and err.count("error:") == 1 and not (tmp_path / "out").exists()


def test_a_temperature_is_wavenets(tmp_path, call):
    golden = Golden("diffwave-lmnt-a")
    np.save(tmp_path / "x.npy", golden["fast_spec"][0])
    line = ["synth", tmp_path / "x.npy", "-o", tmp_path / "x.wav", "--model", golden.folder]
    assert "a diffwave model takes no temperature" in call(*line, "--temperature", 1)[1]
    code, err = call(*line, "--schedule", "0.5,-1")
    assert code == 1 and "schedule" in err
    assert call(*line, "--schedule", "quick")[0] == 2


def test_backends_agree(tmp_path, call, wavenet):
    for backend in ("cpu", "reference"):
        out = tmp_path / f"{backend}.wav"
        assert call("synth", tmp_path / "clip.wav", "-o", out, "--model", wavenet, "--backend", backend)[0] == 0
    cpu, reference = (read_wav(tmp_path / f"{name}.wav", RATE)[0] for name in ("cpu", "reference"))
    assert np.abs(cpu - reference).mean() < 1e-3 and cpu.std() > 0
    assert call("synth", "x", "-o", "y", "--model", "z", "--backend", "abacus")[0] == 2


# ---- what a mel declares -------------------------------------------------------------------------------------------


def declare(path, **changes):
    said = json.loads((path.parent / (path.name + ".json")).read_text())
    said["mel"] |= {key: value for key, value in changes.items() if key != "normalised"}
    said |= {key: value for key, value in changes.items() if key == "normalised"}
    (path.parent / (path.name + ".json")).write_text(json.dumps(said))


def test_a_mel_says_what_it_is(tmp_path, call, wavenet):
    mel, model = tmp_path / "x.npy", ["--model", wavenet]
    assert call("mel", tmp_path / "clip.wav", "-o", mel, *model)[0] == 0
    said = json.loads((tmp_path / "x.npy.json").read_text())
    assert said["normalised"] and MelConfig.from_dict(said["mel"]) == MEL
    assert call("synth", mel, "-o", tmp_path / "a.wav", *model)[0] == 0  # --normalised need not be said
    assert call("synth", tmp_path / "clip.wav", "-o", tmp_path / "b.wav", *model)[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("changes, words", [
    ({"fmax": 1500.0}, "fmax 1500.0 instead of 2000.0"),
    ({"log": "log10"}, "log log10 instead of ln"),
    ({"hop_length": 8, "pad_mode": "constant"}, "hop_length 8 instead of 6, pad_mode constant instead of reflect"),
    ({"mean": [-3.0] * BANDS}, "other statistics"),
    ({"mean": None, "scale": None}, "other statistics"),
])  # fmt: skip
def test_another_convention_is_refused(tmp_path, call, wavenet, changes, words):
    mel, model = tmp_path / "x.npy", ["--model", wavenet]
    call("mel", tmp_path / "clip.wav", "-o", mel, *model)
    declare(mel, **changes)
    code, err = call("synth", mel, "-o", tmp_path / "x.wav", *model)
    assert code == 1 and "declares another mel convention" in err and words in err and "hint: Make it with" in err
    assert not (tmp_path / "x.wav").exists()


def test_raw_and_normalised_declared(tmp_path, call, wavenet):
    mel, model = tmp_path / "x.npy", ["--model", wavenet]
    call("mel", tmp_path / "clip.wav", "-o", mel, *model)
    want = np.load(mel)
    np.save(mel, want * np.float32(2) - np.float32(4))  # the statistics undone, and others declared, which do not count
    declare(mel, normalised=False, mean=[1.0] * BANDS)
    code, err = call("synth", mel, "-o", tmp_path / "a.wav", *model)
    assert code == 0, err
    code, err = call("synth", mel, "-o", tmp_path / "b.wav", *model, "--normalised")
    assert code == 1 and "says the opposite" in err
    (tmp_path / "x.npy.json").write_text("{}")
    code, err = call("synth", mel, "-o", tmp_path / "b.wav", *model)
    assert code == 1 and "must hold 'mel' and 'normalised'" in err


def test_values_of_another_convention_are_named(tmp_path, call, wavenet):
    np.save(tmp_path / "x.npy", (20 * Golden("mel-a")["pwg_22050"].T[:BANDS, :20]).astype(np.float32))
    code, err = call("synth", tmp_path / "x.npy", "-o", tmp_path / "x.wav", "--model", wavenet)
    assert code == 1 and "It looks like decibels" in err
