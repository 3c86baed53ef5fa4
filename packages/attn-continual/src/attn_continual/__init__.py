"""Attention over streams, and by relative positions: whole sequences, chunks and steps agree.

Every name is imported when it is first used, from where `__init__.pyi` says.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
