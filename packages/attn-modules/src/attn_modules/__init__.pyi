# The public names and where they are defined: read by type checkers and, at run time, by __init__.
from . import patterns as patterns
from .attention import Attention as Attention
from .attention_mask import AttentionMask as AttentionMask
from .feature_maps import FeatureMap as FeatureMap
from .feature_maps import FeatureMapType as FeatureMapType
from .input_projection import InputProjection as InputProjection
from .input_projection import InputProjectionConfig as InputProjectionConfig
from .mask_merging import bool_mask_to_additive as bool_mask_to_additive
from .mask_merging import maybe_merge_masks as maybe_merge_masks
from .mask_merging import reshape_key_padding_mask as reshape_key_padding_mask
from .mechanisms.big_bird import BigBirdAttention as BigBirdAttention
from .mechanisms.block_sparse import BlockSparseAttention as BlockSparseAttention
from .mechanisms.compositional import CompositionalAttention as CompositionalAttention
from .mechanisms.favor import FavorAttention as FavorAttention
from .mechanisms.fourier_mix import FourierMix as FourierMix
from .mechanisms.global_tokens import GlobalAttention as GlobalAttention
from .mechanisms.lambda_layer import LambdaLayer as LambdaLayer
from .mechanisms.linear import LinearAttention as LinearAttention
from .mechanisms.linformer import LinformerAttention as LinformerAttention
from .mechanisms.local import LocalAttention as LocalAttention
from .mechanisms.nystrom import NystromAttention as NystromAttention
from .mechanisms.orthoformer import LandmarkSelection as LandmarkSelection
from .mechanisms.orthoformer import OrthoFormerAttention as OrthoFormerAttention
from .mechanisms.pooling import Pooling as Pooling
from .mechanisms.random import RandomAttention as RandomAttention
from .mechanisms.scaled_dot_product import ScaledDotProduct as ScaledDotProduct
from .mechanisms.visual import Visual as Visual
from .multi_head_dispatch import MultiHeadDispatch as MultiHeadDispatch
from .multi_head_dispatch import MultiHeadDispatchConfig as MultiHeadDispatchConfig
from .registry import ATTENTION_REGISTRY as ATTENTION_REGISTRY
from .registry import AttentionConfig as AttentionConfig
from .registry import build_attention as build_attention
from .registry import register_attention as register_attention
from .rotary import RotaryEmbedding as RotaryEmbedding

__version__: str
