"""Which project a set of parameter names comes from: for messages about files that no reader takes."""

import re

SUPPORTED = {
    "NVIDIA's WaveGlow": r"(upsample|WN\.\d+|convinv\.\d+)\.",
    "lmnt's DiffWave": r"(input|skip|output)_projection\.|diffusion_embedding\.|spectrogram_upsampler\.|residual_layers\.\d+\.",
    "philsyn's DiffWave": r"init_conv\.|residual_layer\.(fc_t\d|residual_blocks)|final_conv\.",
    "Parallel WaveGAN": r"(generator\.)?(first_conv|last_conv_layers|upsample_net|conv_layers\.\d+\.conv(1x1_\w+)?)\.",
    "r9y9's WaveNet": r"(first_conv|last_conv_layers|upsample_(net|conv)|embed_speakers|conv_layers\.\d+\.conv(1x1\w*)?)\.",
    "ClariNet": r"(iafs\.\d+\.)?(front_conv|res_blocks|final_conv|upsample_conv)\.",
    "nv-wavenet": r"(embed|upsample|(cond|dilate|res|skip)_layers|conv_out|conv_end)\.",
}
UNSUPPORTED = {
    "HiFi-GAN": r"(generator\.)?(conv_pre|ups\.\d+|resblocks\.\d+|conv_post)\.",
    "MelGAN": r"(generator\.)?(model|melgan)\.\d+\.",
    "Tacotron 2": r"(embedding|encoder|decoder|postnet)\.",
    "WaveRNN": r"(I|rnn\d|fc\d|upsample\.up_layers)\.",
}
# Names that tell two projects with the same tree apart
TELLING = {
    "Parallel WaveGAN": r"conv1x1_aux",
    "r9y9's WaveNet": r"conv1x1[cg]\.|embed_speakers",
    "NVIDIA's WaveGlow": r"^(WN|convinv)\.",
}


def nearest(names) -> str | None:
    """One sentence on whose names these resemble, where more than half of them do."""
    names = [name.removeprefix("module.") for name in names if isinstance(name, str)][:2000]
    scores = {}
    for family, pattern in {**SUPPORTED, **UNSUPPORTED}.items():
        share = sum(re.match(pattern, name) is not None for name in names) / max(len(names), 1)
        telling = any(re.search(TELLING.get(family, r"(?!)"), name) for name in names)
        scores[family] = share + 0.1 * telling
    best = max(scores, key=scores.get)
    if scores[best] <= 0.5:
        return None
    if best in UNSUPPORTED:
        return f"It looks like {best}, an unsupported architecture; supported are {', '.join(SUPPORTED)}."
    return f"The names are nearest to those of {best}."
