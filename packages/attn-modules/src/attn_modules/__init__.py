"""Research attention mechanisms on attn-ops: one interface, one mask contract, no N x N tensors.

Every name is imported when it is first used, from where `__init__.pyi` says, so that `import
attn_modules` is quick and a part that cannot be imported breaks nothing else.

>>> import torch
>>> from attn_modules import build_attention
>>> attention = build_attention({"name": "local", "window_size": 3, "causal": True})
>>> x = torch.randn(2, 4, 16, 8)  # [B, H, M, K]
>>> attention(x, x, x).shape
torch.Size([2, 4, 16, 8])
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
