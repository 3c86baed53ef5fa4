"""Says in users' terms what the core refuses, which alone reads the numbers in a mask's tensors.

The core speaks of the arguments of its C interface, users of the attributes of their mask.
"""

import re

from attn_ops._inputs import WHO, Inputs
from attn_ops.fmha.attn_bias import AttentionBias, BiasedMask

# What the core says, and what stands for it. "{mask}" is the argument that holds the attribute.
_TERMS = (
    (r"max_q_len and max_k_len", "what {mask} was made for"),
    (r"raise them or pass 0", "make it with more room (kv_padding, max_q_seqlen, max_kv_seqlen)"),
    (r"\b(sequences|pages|blocks|relative)\.(?=\w)", "{mask}."),
    (r"\bq_start\b", "q_seqinfo.seqstart"),
    (r"\bk_start\b", "k_seqinfo.seqstart"),
    (r"\bk_len\b", "k_seqinfo.seqlen"),
    (r"\bblock_table\b", "block_tables"),
    (r"; sort them$", "; name blocks that key has, in ascending order"),
    (r"; reshape \S+\.offsets$", "; make the mask for query's heads, or for one"),
)


def refusal_of_core(error: RuntimeError) -> str | None:
    """Return what the core, or an operator around it, says in an operator's error; else None."""
    own = r"\battn_(?:attention|linear|step)\w*|^(?:attention|step)"
    refusal = re.search(rf"(?:{own}): (.*)", str(error))
    return None if refusal is None else refusal[1]


def in_users_terms(error: RuntimeError, inputs: Inputs) -> str | None:
    """Return what to tell about an error of an operator, or None if it is no refusal."""
    text = refusal_of_core(error)
    if text is None:
        return None
    for theirs, ours in _TERMS:
        text = re.sub(theirs, ours.format(mask=_mask_argument(inputs)), text)
    return f"{WHO}: {text}{_what_mask_is_for(text, inputs)}"


def _mask_argument(inputs: Inputs) -> str:
    argument, mask = "attn_bias", inputs.attn_bias
    while isinstance(mask, BiasedMask):
        argument, mask = f"{argument}.mask", mask.mask
    return argument


def _what_mask_is_for(text: str, inputs: Inputs) -> str:
    """Return which lengths would do, if the refusal is about those of query and key."""
    if not re.search(r"\brows\b", text):
        return ""
    attn_bias, lengths = inputs.attn_bias, (inputs.query.shape[1], inputs.key.shape[1])
    made_for = attn_bias.natural_shape() if isinstance(attn_bias, AttentionBias) else None
    if made_for is None or made_for == lengths:
        return ""
    return (
        f"; this {type(attn_bias).__name__} is made for {made_for[0]} queries and {made_for[1]} "
        f"keys, and these are {lengths[0]} and {lengths[1]}"
    )
