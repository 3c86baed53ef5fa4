"""Encode sounds while they are heard: streams that start and stop, in chunks of any length.

A pool of streams is encoded together, each at a place of its own. Whenever sound has arrived, the
next frames of those streams that have some are encoded in one call; a stream that ends leaves its
place in the pool to the next sound. Afterwards every sound is encoded again as a whole: the
outputs must be the same.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import torch
    from torch import Tensor
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"stream_sound: {missing}; install torch and tqdm, or run `./dev demo` once")

from attn_continual import (
    ContinualModule,
    StackedTransformerEncoder,
    TransformerEncoderLayerFactory,
    reset_streams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RATE, HOP, WINDOW, MELS = 16_000, 160, 400, 40  # samples per second, frame and window; features
POOL, LONGEST_CHUNK = 4, 12


def write_melody(path: Path, seconds: float) -> None:
    """Write a WAV file of gliding tones with overtones, in syllables."""
    t = torch.arange(int(seconds * RATE)) / RATE
    pitch = 140 + 40 * torch.sin(2 * math.pi * 0.7 * t) + 6 * torch.sin(2 * math.pi * 5 * t)
    phase = 2 * math.pi * pitch.cumsum(0) / RATE
    tones = sum(torch.sin(n * phase) / n for n in range(1, 20))
    syllables = torch.sin(2 * math.pi * 1.7 * t).clamp(min=0) ** 0.5
    samples = (0.2 * 32767 * tones * syllables).to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.numpy().tobytes())


def read_samples(path: Path) -> Tensor:
    """Return a mono WAV file of 16 bits as numbers in [-1, 1]."""
    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE):
            sys.exit(f"stream_sound: expected one channel of 16 bits at {RATE} Hz in {path}")
        frames = bytearray(file.readframes(file.getnframes()))
    return torch.frombuffer(frames, dtype=torch.int16).float() / 32768


def log_mel(samples: Tensor) -> Tensor:
    """Return the logarithm of the energy in MELS bands, one row per frame: [frames, MELS]."""
    spectrum = torch.stft(
        samples, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True
    )
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rising, falling).clamp(min=0)
    return (bands @ spectrum.abs().square() + 1e-6).log().T


@dataclass
class Sound:
    """One sound: what is heard of it, and what became of it."""

    frames: Tensor
    """[frames, MELS]"""
    heard: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    """[frames, MELS] of each chunk"""


class Pool:
    """Sounds in the places of the pool, and what arrives of them."""

    def __init__(self, sounds: list[Sound], generator: torch.Generator) -> None:
        self.waiting = list(reversed(sounds))
        self.places: list[Sound | None] = [None] * POOL
        self.generator = generator

    def draw(self, most: int) -> int:
        """Return a number of 1 to `most`."""
        return int(torch.randint(most, (), generator=self.generator)) + 1

    def admit(self) -> Tensor:
        """Give free places to waiting sounds, now and then; return which are new, bool [POOL]."""
        is_new = torch.zeros(POOL, dtype=torch.bool)
        for n, sound in enumerate(self.places):
            if sound is None and self.waiting and self.draw(3) == 1:
                self.places[n] = self.waiting.pop()
                is_new[n] = True
        return is_new

    def arrivals(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield frames [POOL, T, MELS], which places they are for, and which of those are new."""
        while self.waiting or any(self.places):
            is_new = self.admit()
            has_sound = torch.tensor([sound is not None for sound in self.places])
            active = has_sound & (torch.rand(POOL, generator=self.generator) < 0.8)
            heard = [s for s, chosen in zip(self.places, active.tolist(), strict=True) if chosen]
            left = [len(s.frames) - s.heard for s in heard if s is not None]
            length = min([self.draw(LONGEST_CHUNK), *left]) if left else 0
            frames = torch.zeros(POOL, length, MELS)
            for n, sound in enumerate(self.places):
                if sound is not None and active[n]:
                    frames[n] = sound.frames[sound.heard : sound.heard + length]
            yield frames, active, is_new

    def take(self, outputs: Tensor, valid: Tensor, active: Tensor) -> None:
        """Hand each sound its outputs, and free the places of those that have ended."""
        for n, sound in enumerate(self.places):
            if sound is None or not active[n]:
                continue
            sound.outputs.append(outputs[n, valid[n]])
            sound.heard += outputs.shape[1]
            if sound.heard == len(sound.frames):
                self.places[n] = None


def make_encoder(window: int) -> ContinualModule:
    """Return an encoder of two layers, each of which sees its own last `window` frames."""
    torch.manual_seed(0)
    layer = TransformerEncoderLayerFactory(
        MELS, nhead=4, dim_feedforward=4 * MELS, sequence_len=window, embed_dim_second=False
    )
    return StackedTransformerEncoder(layer, num_layers=2).eval()


def encode_while_heard(encoder: ContinualModule, pool: Pool, num_frames: int) -> list[float]:
    """Feed everything that arrives, showing progress; return the seconds that each call took."""
    first = encoder.initial_state(POOL)
    state, seconds = first, []
    with tqdm(total=num_frames, unit="frame", desc="streaming") as progress:
        for frames, active, is_new in pool.arrivals():
            begin = time.perf_counter()
            state = reset_streams(state, first, is_new)
            outputs, state, valid = encoder.steps(frames, state, active=active)
            seconds.append(time.perf_counter() - begin)
            pool.take(outputs, valid, active)
            progress.update(int(active.sum()) * frames.shape[1])
    return seconds


def encode_whole(encoder: ContinualModule, sound: Sound) -> Tensor:
    """Return the outputs [frames, MELS] of a sound that lies there as a whole."""
    outputs, _, valid = encoder.steps(sound.frames[None], encoder.initial_state(1))
    return outputs[0, valid[0]]


def cut_sounds(path: Path, count: int, generator: torch.Generator) -> list[Sound]:
    """Return the features of a WAV file, with mean 0 and variance 1, in pieces of random length."""
    features = log_mel(read_samples(path))
    features = (features - features.mean()) / features.std()
    ends = (torch.rand(count, generator=generator) + 0.5).cumsum(0)
    cuts = (ends / ends[-1] * len(features)).long()[:-1]
    return [Sound(part) for part in features.tensor_split(cuts)]


def largest_difference(encoder: ContinualModule, sounds: list[Sound]) -> float:
    """Return how far what was streamed is from the sounds encoded as a whole; inf if it lacks."""
    differences = []
    for sound in sounds:
        streamed, whole = torch.cat(sound.outputs), encode_whole(encoder, sound)
        if streamed.shape != whole.shape:
            return math.inf
        differences.append((streamed - whole).abs().max().item() if whole.numel() else 0.0)
    return max(differences)


def main() -> None:
    """Stream the sounds, compare with the whole, and print how long calls took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", type=int, default=12, help="how many streams (default 12)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of sound (default 60)")
    parser.add_argument("--window", type=int, default=64, help="frames of 10 ms (default 64)")
    parser.add_argument("--wav", type=Path, help="a sound of your own, mono, 16 bits, 16 kHz")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        path = options.wav or Path(folder) / "melody.wav"
        if options.wav is None:
            write_melody(path, options.seconds)
        sounds = cut_sounds(path, options.sounds, generator)
    encoder = make_encoder(options.window)
    num_frames = sum(len(sound.frames) for sound in sounds)
    with torch.inference_mode():
        seconds = encode_while_heard(encoder, Pool(sounds, generator), num_frames)
        difference = largest_difference(encoder, sounds)
    num_outputs = sum(len(out) for sound in sounds for out in sound.outputs)
    print(f"{len(sounds)} sounds, {num_frames} frames, {POOL} at a time in {len(seconds)} calls")
    print(f"outputs: {num_outputs}, from frame {encoder.receptive_field} of each sound on")
    print(f"largest difference from whole sounds: {difference:.1e}")
    latency = 1000 * torch.tensor(seconds).quantile(torch.tensor([0.5, 0.9, 0.99]))
    print("latency of a call, ms: median {:.2f}, 90 % {:.2f}, 99 % {:.2f}".format(*latency))
    print(f"{num_frames * HOP / RATE:.0f} s of sound took {sum(seconds):.1f} s")
    if difference > 1e-4:
        sys.exit("stream_sound: streaming gave other outputs than the whole")


if __name__ == "__main__":
    main()
