"""From torch's attention and encoders to continual ones with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from torch import nn

from attn_continual.continual_encoder_layer import (
    RetroactiveTransformerEncoderLayer,
    SingleOutputTransformerEncoderLayer,
)
from attn_continual.retroactive import RetroactiveMultiheadAttention
from attn_continual.single_output import SingleOutputMultiheadAttention
from attn_continual.transformer_encoder import StackedTransformerEncoder, TransformerEncoder

if TYPE_CHECKING:
    from attn_continual.continual_module import ContinualModule

ContinualForm = Literal["single_output", "retroactive", "windowed", "stacked"]
"""One row of a window or all; an encoder over one window or over a window in each layer."""

_FORMS: Final[dict[type[nn.Module], dict[str, Any]]] = {
    nn.MultiheadAttention: {
        "single_output": SingleOutputMultiheadAttention,
        "retroactive": RetroactiveMultiheadAttention,
    },
    nn.TransformerEncoderLayer: {
        "single_output": SingleOutputTransformerEncoderLayer,
        "retroactive": RetroactiveTransformerEncoderLayer,
    },
    nn.TransformerEncoder: {
        "windowed": TransformerEncoder,
        "stacked": StackedTransformerEncoder,
    },
}


def continual(
    module: nn.Module,
    sequence_len: int,
    form: ContinualForm | None = None,
    **options: Any,  # noqa: ANN401  the constructor's
) -> ContinualModule:
    """Return torch's attention, encoder layer or encoder as one that runs step by step.

    Weights are copied, and so are settings, layout, whether it trains and which weights are
    trained; what parametrizations of attention compute becomes its weights. The way back is the
    result's `to_torch`; and state_dicts load both ways as they are.

    sequence_len: the steps of the window.
    form: "single_output" (default) or "retroactive" for attention and layers; "windowed" (default)
        or "stacked" for encoders.
    options: further arguments of the class that is built.
    Raises: TypeError for another module; ValueError for a form that it does not have, or for
        attention with other parameters than torch's.

    >>> continual(nn.MultiheadAttention(8, 2), sequence_len=4).receptive_field
    4
    """
    forms = next((forms for kind, forms in _FORMS.items() if isinstance(module, kind)), None)
    if forms is None:
        names = ", ".join(f"nn.{kind.__name__}" for kind in _FORMS)
        raise TypeError(f"continual: expected one of {names}, got {type(module).__name__}")
    if form is not None and form not in forms:
        raise ValueError(
            f"continual: expected a form of {type(module).__name__}, one of {', '.join(forms)}, "
            f"got {form!r}"
        )
    return forms[form or next(iter(forms))].build_from(module, sequence_len, **options)
