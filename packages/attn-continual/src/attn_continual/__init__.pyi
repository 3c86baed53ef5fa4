# The public names and where they are defined: read by type checkers and, at run time, by __init__.
from .call_mode import CallMode as CallMode
from .call_mode import call_mode as call_mode
from .continual_module import ContinualModule as ContinualModule
from .continual_module import ModuleState as ModuleState
from .cyclic_positional_encoding import CyclicPositionalEncoding as CyclicPositionalEncoding
from .functional_step import FunctionalStep as FunctionalStep
from .position_attention import attend_by_position as attend_by_position
from .positional_encoding import RecyclingPositionalEncoding as RecyclingPositionalEncoding
from .relative_attention import GroupedLinear as GroupedLinear
from .relative_attention import RelativeAttention as RelativeAttention
from .retroactive import RetroactiveMultiheadAttention as RetroactiveMultiheadAttention
from .single_output import SingleOutputMultiheadAttention as SingleOutputMultiheadAttention

__version__: str
