"""Train small models of text, letter by letter, that differ in their attention alone.

The text is the help topics of this Python installation; the last tenth of it is held out. Printed
is the mean loss per letter there, in nats: below what single letters' frequencies give, a model
has learned to read what stands before.
"""

from __future__ import annotations

import argparse
import sys
import time
from pydoc_data.topics import topics

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import cross_entropy
    from tqdm import trange
except ImportError as missing:
    sys.exit(f"train_characters: {missing}; install torch and tqdm, or run `./dev demo` once")

from attn_modules import MultiHeadDispatch, build_attention

WIDTH, HEADS, LAYERS, LENGTH, BATCH = 64, 4, 2, 256, 8
MECHANISMS = {
    "scaled_dot_product": {},
    "local": {"window_size": 32},
    "favor": {"dim_head": WIDTH // HEADS, "dim_features": 64},
}


class Layer(nn.Module):
    """A layer of a transformer, normalised before each of its two parts."""

    def __init__(self, mechanism: str) -> None:
        super().__init__()
        attention = build_attention({"name": mechanism, "causal": True} | MECHANISMS[mechanism])
        self.attend = MultiHeadDispatch(WIDTH, HEADS, attention, use_rotary_embeddings=True)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.widen = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next layer's input. Shapes: x [B, M, WIDTH]; result the same."""
        x = x + self.attend(self.norms[0](x))
        return x + self.narrow(self.widen(self.norms[1](x)).relu())


def make_model(mechanism: str, letters: int) -> nn.Sequential:
    """Return a model [B, M] -> [B, M, letters], with the same weights for every mechanism."""
    torch.manual_seed(0)
    layers = [Layer(mechanism) for _ in range(LAYERS)]
    read_out = nn.Linear(WIDTH, letters)
    return nn.Sequential(nn.Embedding(letters, WIDTH), *layers, nn.LayerNorm(WIDTH), read_out)


def read_text() -> tuple[Tensor, Tensor, int]:
    """Return the text to learn from and that held out, as numbers, and how many there are."""
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = sorted(set(text))
    number = {letter: place for place, letter in enumerate(letters)}
    numbers = torch.tensor([number[letter] for letter in text])
    split = len(numbers) * 9 // 10
    return numbers[:split], numbers[split:], len(letters)


def draw(text: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Return pieces of the text from random places, [samples, LENGTH + 1]."""
    first = torch.randint(len(text) - LENGTH, (samples, 1), generator=generator)
    return text[first + torch.arange(LENGTH + 1)]


def loss_of(model: nn.Module, pieces: Tensor) -> Tensor:
    """Return the mean loss of guessing each letter from those before it."""
    return cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def train(mechanism: str, steps: int) -> float:
    """Train with one mechanism, showing progress, and return the loss on the text held out."""
    learned, held_out, letters = read_text()
    model, generator = make_model(mechanism, letters), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with trange(steps, desc=mechanism, unit="step") as progress:
        for _ in progress:
            loss = loss_of(model, draw(learned, BATCH, generator))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()
    with torch.no_grad():
        return loss_of(model, draw(held_out, 32, generator)).item()


def frequency_loss() -> float:
    """Return the loss of guessing by how often each letter occurs."""
    learned, _, letters = read_text()
    frequencies = learned.bincount(minlength=letters) / len(learned)
    return torch.special.entr(frequencies).sum().item()


def main() -> None:
    """Train with each mechanism, and print what each has reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="of each model (default 200)")
    steps = parser.parse_args().steps
    # Tensors this small take longer where threads wait for each other, on busy machines most.
    torch.set_num_threads(1)
    print(f"frequencies alone    loss {frequency_loss():.3f}", flush=True)
    for mechanism in MECHANISMS:
        begin = time.perf_counter()
        loss = train(mechanism, steps)
        print(f"{mechanism:<20} loss {loss:.3f}  {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
