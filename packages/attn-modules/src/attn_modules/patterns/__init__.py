"""Which keys queries see, by name: dense patterns, layouts of blocks, and masks for kernels.

A `…_pattern` is a bool tensor where True keeps a key, which every mechanism takes as `att_mask`;
it has as many elements as there are queries times keys. A `…_block_mask` says the same in blocks,
without such a tensor, for `attn_ops.memory_efficient_attention`. `docs/patterns.svg` shows them.

>>> local_1d_pattern(3, window_size=3)
tensor([[ True,  True, False],
        [ True,  True,  True],
        [False,  True,  True]])
>>> local_1d_block_mask(4096, window_size=129, block_size=64).indices.shape
torch.Size([190])
"""

from attn_modules.patterns.alibi import alibi_bias, alibi_pattern
from attn_modules.patterns.big_bird import big_bird_block_mask
from attn_modules.patterns.blocks import (
    alibi_block_mask,
    axial_2d_block_mask,
    causal_1d_block_mask,
    dilated_1d_block_mask,
    dilated_2d_block_mask,
    global_token_block_mask,
    local_1d_block_mask,
    local_2d_block_mask,
    random_block_mask,
    swin_block_mask,
)
from attn_modules.patterns.layouts import (
    block_sparsify_tensor,
    crop_blocks,
    layout_to_pattern,
    mask_to_layout,
    pattern_to_layout,
    quick_bigbird_layout,
    quick_bslongformer_layout,
    quick_fixed_layout,
    quick_variable_layout,
    to_block_mask,
)
from attn_modules.patterns.n_dimensional import (
    axial_nd_pattern,
    local_nd_distance,
    local_nd_gaussian_distribution,
    local_nd_pattern,
)
from attn_modules.patterns.one_dimensional import (
    causal_1d_pattern,
    dilated_1d_pattern,
    global_token_pattern,
    local_1d_pattern,
)
from attn_modules.patterns.random import random_pattern, random_pattern_from_probability_matrix
from attn_modules.patterns.two_dimensional import (
    axial_2d_pattern,
    dilated_2d_pattern,
    horizontal_axial_2d_distance,
    local_2d_distance,
    local_2d_gausian_distribution,
    local_2d_gaussian_distribution,
    local_2d_pattern,
    swin_attention_pattern,
    vertical_axial_2d_distance,
)

__all__ = [
    "alibi_bias",
    "alibi_block_mask",
    "alibi_pattern",
    "axial_2d_block_mask",
    "axial_2d_pattern",
    "axial_nd_pattern",
    "big_bird_block_mask",
    "block_sparsify_tensor",
    "causal_1d_block_mask",
    "causal_1d_pattern",
    "crop_blocks",
    "dilated_1d_block_mask",
    "dilated_1d_pattern",
    "dilated_2d_block_mask",
    "dilated_2d_pattern",
    "global_token_block_mask",
    "global_token_pattern",
    "horizontal_axial_2d_distance",
    "layout_to_pattern",
    "local_1d_block_mask",
    "local_1d_pattern",
    "local_2d_block_mask",
    "local_2d_distance",
    "local_2d_gausian_distribution",
    "local_2d_gaussian_distribution",
    "local_2d_pattern",
    "local_nd_distance",
    "local_nd_gaussian_distribution",
    "local_nd_pattern",
    "mask_to_layout",
    "pattern_to_layout",
    "quick_bigbird_layout",
    "quick_bslongformer_layout",
    "quick_fixed_layout",
    "quick_variable_layout",
    "random_block_mask",
    "random_pattern",
    "random_pattern_from_probability_matrix",
    "swin_attention_pattern",
    "swin_block_mask",
    "to_block_mask",
    "vertical_axial_2d_distance",
]
