"""fastvoc mel: the mel spectrogram of a wav, as a .npy file, and its convention beside it as a .npy.json."""

import logging
from functools import partial
from pathlib import Path

import numpy as np

import fastvoc
from fastvoc.audio.mel import MelConfig, mel_spectrogram
from fastvoc.audio.wav import read_wav
from fastvoc.cli.features import write_mel
from fastvoc.cli.options import (
    add_command,
    add_overwrite,
    add_reader_options,
    add_reading,
    check_folder,
    is_done,
    reader_options,
)
from fastvoc.errors import ConfigError

log = logging.getLogger("fastvoc")


def add(commands) -> None:
    parser = add_command(commands, "mel", run, "the mel of a wav, as a float32 .npy of (n_mels, n_frames)")
    parser.add_argument("input", type=Path, metavar="IN.wav")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.npy")
    convention = parser.add_mutually_exclusive_group(required=True)
    convention.add_argument("--model", type=Path, metavar="DIR",
                            help="what this model takes, its statistics applied")
    convention.add_argument("--preset", metavar="NAME",
                            help="raw log-mel of tacotron, lmnt, parallel_wavegan, r9y9, r9y9_2018, clarinet or bfs18")
    add_reading(parser)
    add_reader_options(parser)
    add_overwrite(parser)


def run(options) -> None:
    check_folder(options.out.parent)
    if is_done(options.out, options):
        return
    if options.preset:
        convention = MelConfig.preset(options.preset)
        features = partial(mel_spectrogram, config=convention)
    else:
        preprocessing = fastvoc.load(options.model, **reader_options(options)).preprocessing
        if preprocessing is None:
            raise ConfigError(f"{options.model} has no preprocessor_config.json, no convention", hint="Use --preset.")
        convention, features = preprocessing.mel, preprocessing.features
    wav, _ = read_wav(options.input, sample_rate=convention.sample_rate, resample=options.resample, mix=options.mix)
    mel = np.asarray(features(wav), np.float32)
    write_mel(options.out, mel, convention, normalised=convention.mean is not None)
    log.info("%s: %d bands, %d frames", options.out, *mel.shape)
