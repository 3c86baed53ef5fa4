# The public names and where they are defined: read by type checkers and, at run time, by __init__.
from . import returnn as returnn
from .call_mode import CallMode as CallMode
from .call_mode import call_mode as call_mode
from .continual_encoder_layer import RetroactiveTransformerEncoderLayer as RetroactiveTransformerEncoderLayer
from .continual_encoder_layer import SingleOutputTransformerEncoderLayer as SingleOutputTransformerEncoderLayer
from .continual_module import ContinualModule as ContinualModule
from .continual_module import ModuleState as ModuleState
from .conversion import ContinualForm as ContinualForm
from .conversion import continual as continual
from .cyclic_positional_encoding import CyclicPositionalEncoding as CyclicPositionalEncoding
from .deberta import log_bucket_positions as log_bucket_positions
from .deberta import relative_attention_from_deberta as relative_attention_from_deberta
from .encoder_layer import TransformerEncoderLayer as TransformerEncoderLayer
from .encoder_layer_factory import EncoderLayerKind as EncoderLayerKind
from .encoder_layer_factory import TransformerEncoderLayerFactory as TransformerEncoderLayerFactory
from .functional_step import FunctionalStep as FunctionalStep
from .grouped_linear import GroupedLinear as GroupedLinear
from .position_attention import attend_by_position as attend_by_position
from .positional_encoding import RecyclingPositionalEncoding as RecyclingPositionalEncoding
from .relative_attention import RelativeAttention as RelativeAttention
from .residual import Residual as Residual
from .retroactive import RetroactiveMultiheadAttention as RetroactiveMultiheadAttention
from .single_output import SingleOutputMultiheadAttention as SingleOutputMultiheadAttention
from .streams import choose_streams as choose_streams
from .streams import reset_streams as reset_streams
from .streams import select_streams as select_streams
from .streams import stack_streams as stack_streams
from .transformer_encoder import StackedTransformerEncoder as StackedTransformerEncoder
from .transformer_encoder import TransformerEncoder as TransformerEncoder

__version__: str
