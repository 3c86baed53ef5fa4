"""`RelativeAttention` in each of its forms, and what its definition says of them, in float64."""

import torch
from torch import nn

from attn_continual import RelativeAttention
from reference.continual import relative_attention as reference

CASES = {
    "one coordinate": {},
    "two coordinates": {"coordinates": 2},
    "more keys": {"keys": 9, "coordinates": 2},
    "extra heads": {"extra_heads": 2},
    "one projection for all": {"same_key_query_proj": True},
    "one projection of positions": {"same_positional_key_query_proj": True},
    "content alone": {"mode": ("c2c",)},
    "a word for a mode": {"mode": "c2c"},
    "c2p alone": {"mode": ("c2p",)},
    "p2c alone": {"mode": ("p2c",)},
    "another order": {"mode": ("p2c", "c2c")},
    "no bias": {"head_bias": False},
    "no position for some": {"has_unplaced": True},
    "no positions": {"positions": None},
    "one for all samples": {"positions": "shared"},
    "distances": {"positions": "distances", "keys": 9},
    "distances of two coordinates": {"positions": "distances", "coordinates": 2, "queries": 9},
    "distances transposed": {"positions": "distances", "p2c_index": "transposed"},
    "distances and all else": {
        "positions": "distances",
        "extra_heads": 1,
        "has_base": True,
        "mask": 4,
        "mode": ("p2c", "c2c"),
    },
    "base logits": {"has_base": True, "extra_heads": 1},
    "mask of keys": {"mask": 2},
    "mask of pairs": {"mask": 3},
    "mask of heads": {"mask": 4, "extra_heads": 1},
    "transposed": {"p2c_index": "transposed"},
    "own sizes": {"sizes": {"query_size": 7, "key_size": 10, "value_size": 5, "head_size": 6}},
    "logits alone": {"do_pooling": False, "extra_heads": 1},
    "everything": {
        "coordinates": 2,
        "extra_heads": 1,
        "has_unplaced": True,
        "has_base": True,
        "mask": 4,
        "keys": 4,
    },
}
COUNT, SIZE, HEADS = 6, 8, 2
"""Of positions, fewer than distances: some are clamped."""


def make_case(
    *,
    coordinates=1,
    queries=5,
    keys=5,
    extra_heads=0,
    positions="own",
    has_unplaced=False,
    has_base=False,
    mask=None,
    sizes=None,
    dtype=torch.float64,
    **options,
):
    """Return a layer, its inputs by name, and the options of the reference."""
    torch.manual_seed(3)
    layer = RelativeAttention(
        SIZE,
        HEADS,
        position_embedding=nn.Parameter(torch.randn(COUNT, 4 * coordinates)),
        n_coordinates=coordinates,
        n_additional_heads=extra_heads,
        **(sizes or {}),
        **options,
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    sizes = {"query_size": SIZE, "key_size": SIZE, "value_size": SIZE} | (sizes or {})
    samples, heads = 3, HEADS + extra_heads
    inputs = {
        "content_queries": torch.randn(samples, queries, sizes["query_size"], dtype=dtype),
        "content_keys": torch.randn(samples, keys, sizes["key_size"], dtype=dtype),
        "content_values": torch.randn(samples, keys, sizes["value_size"], dtype=dtype),
    }
    if positions is not None:
        shape = (samples if positions == "own" else 1, queries, keys, coordinates)
        inputs["relative_positions"] = torch.randint(-4, 5, shape)
    if positions == "distances":
        distance = torch.arange(keys) - torch.arange(queries)[:, None]
        of_distance = torch.tensor([0, 3, -1, -2, 1, 2, -3, 0, 1, 2, -1, 3, -2, 4])
        columns = [of_distance.roll(c)[distance + queries] for c in range(coordinates)]
        inputs["relative_positions"] = torch.stack(columns, -1).expand(samples, -1, -1, -1)
    if has_unplaced:
        inputs["no_position_mask"] = torch.rand(samples, queries, keys) < 0.3
    if has_base:
        inputs["base_attn"] = torch.randn(samples, queries, keys, heads, dtype=dtype)
    if mask is not None:
        shape = {2: (samples, keys), 3: (samples, queries, keys)}
        shape = shape.get(mask, (samples, queries, keys, HEADS))
        inputs["mask"] = torch.rand(shape) < 0.7
    for x in inputs.values():
        x.requires_grad_(x.is_floating_point())
    mode = options.get("mode", ("c2c", "p2c", "c2p"))
    settings = {
        "heads": HEADS,
        "extra_heads": extra_heads,
        "coordinates": coordinates,
        "mode": (mode,) if isinstance(mode, str) else mode,
        "p2c_index": options.get("p2c_index", "same"),
    }
    return layer.to(dtype), inputs, settings


def expected_of(layer, inputs, settings):
    """Return outputs, logits, and the gradients of inputs and of parameters, in float64."""
    wide = {
        name: x.detach().double().requires_grad_() if x.is_floating_point() else x
        for name, x in inputs.items()
    }
    own = {
        name: x.detach().double().requires_grad_() for name, x in layer.named_parameters()
    }  # tied ones once
    parameters = dict(own)
    for name, same in (("content", "key"), ("position", "key")):
        for kind in ("weight", "bias"):
            parameters.setdefault(f"{name}_query_proj.{kind}", own[f"{name}_{same}_proj.{kind}"])
    arguments = dict(wide)
    if not layer.do_pooling:
        arguments["content_values"] = None
    pooled, logits = reference.attend(parameters, **arguments, **settings)
    results = [x for x in (pooled, logits) if x is not None]
    return results, gradients(results, [*wide.values(), *own.values()])


def results_of(call, inputs, layer=None):
    results = call(**inputs)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    parameters = (call if layer is None else layer).parameters()
    return results, gradients(results, [*inputs.values(), *parameters])


def gradients(results, inputs):
    generator = torch.Generator().manual_seed(8)
    cotangents = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in results
    ]
    wanted = [x for x in inputs if x.requires_grad]
    found = torch.autograd.grad(results, wanted, cotangents, allow_unused=True)
    pairs = zip(found, wanted, strict=True)
    return [torch.zeros_like(x) if grad is None else grad for grad, x in pairs]
