"""Layers for the tests of RETURNN's attention: every variant of positions, drawn parameters."""

import itertools

import torch

from attn_continual import returnn

IN, OUT, KEY, VALUE, HEADS = 6, 5, 8, 10, 2

POSITIONS = {
    "-".join(name if on else f"no {name}" for name, on in zip(names, flags, strict=True)): dict(
        zip(
            ("with_linear_pos", "with_pos_bias", "learnable_pos_emb", "separate_pos_emb_per_head"),
            flags,
            strict=True,
        )
    )
    for names in [("linear", "bias", "learned", "separate")]
    for flags in itertools.product([True, False], repeat=4)
}
"""The arguments of every variant."""


def made(cls, dtype=torch.float64, **options):
    """Return a layer in evaluation mode whose parameters are all drawn, biases too."""
    if "learnable_pos_emb" in options:
        options = {"learnable_pos_emb_clipping": 3, **options}
    sizes = {"key_dim_total": KEY, "value_dim_total": VALUE, "num_heads": HEADS}
    layer = cls(IN, OUT, **sizes, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return layer.to(dtype).eval()


def source(*shape, dtype=torch.float64, seed=1):
    """Return drawn numbers [*shape, in]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, IN, generator=generator, dtype=torch.float64).to(dtype)


def in_chunks(layer, x, lengths, state=None):
    """Return the results of chunks of x [*batch, T, in], and the state; 1 stands for a step."""
    batch = list(x.shape[:-2])
    state = layer.default_initial_state(batch_dims=batch, dtype=x.dtype) if state is None else state
    outs = []
    for chunk in x.split(lengths, -2):
        if chunk.shape[-2] == 1:
            out, state = layer(chunk.squeeze(-2), axis=returnn.single_step_dim, state=state)
            outs.append(out.unsqueeze(-2))
        else:
            out, state = layer(chunk, axis=-2, state=state)
            outs.append(out)
    return torch.cat(outs, -2), state
