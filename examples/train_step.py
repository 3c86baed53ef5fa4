"""Train attention with a causal mask and a learned bias per distance, on a task that needs both.

Each position must repeat the token three places before it, which only a bias on distance can tell.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import attn_ops

VOCABULARY, LENGTH, DISTANCE, HEADS, WIDTH = 16, 48, 3, 2, 32


class Attention(nn.Module):
    """Causal self-attention whose scores get a learned number per head and distance."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.bias = nn.Parameter(torch.zeros(HEADS, LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        """Attend. Shapes: x [B, M, H * K]; result the same."""
        query, key, value = self.project(x).unflatten(-1, (3, HEADS, WIDTH)).unbind(2)
        out = attn_ops.memory_efficient_attention(query, key, value, self.causal_bias())
        return out.flatten(2)

    def causal_bias(self) -> Tensor:
        """Return the bias of each query and key, [1, H, M, M]: -inf where the key comes later."""
        place = torch.arange(LENGTH)
        distance = place.unsqueeze(1) - place
        bias = self.bias[:, distance.clamp(min=0)]
        return bias.masked_fill(distance < 0, float("-inf")).unsqueeze(0)


def main() -> None:
    """Train for a few seconds and print the loss."""
    torch.manual_seed(0)
    embed = nn.Embedding(VOCABULARY, HEADS * WIDTH)
    attention = Attention()
    read_out = nn.Linear(HEADS * WIDTH, VOCABULARY)
    model = nn.Sequential(embed, attention, read_out)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(101):
        tokens = torch.randint(VOCABULARY, (16, LENGTH))
        logits = model(tokens)[:, DISTANCE:]
        loss = cross_entropy(logits.flatten(0, 1), tokens[:, :-DISTANCE].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3}  loss {loss.item():.4f}")
    print(f"distance each head looks at: {attention.bias.argmax(1).tolist()}")


if __name__ == "__main__":
    main()
