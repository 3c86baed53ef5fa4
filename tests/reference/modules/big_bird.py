"""BigBird's pattern as its paper says it, one block after the other, with Python's own integers."""


def scramble(x):
    """Return the 32-bit hash with multipliers 21f0aaad and 735a2d97."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
    x = ((x ^ (x >> 15)) * 0x735A2D97) % 2**32
    return x ^ (x >> 15)


def rows(num_blocks, window, num_global, num_random, head=0, causal=False, seed=0):
    """Return the set of blocks that each block of queries of one head sees."""
    return [
        row_of(row, num_blocks, window, num_global, num_random, head, causal, seed)
        for row in range(num_blocks)
    ]


def row_of(row, num_blocks, window, num_global, num_random, head, causal, seed):
    """Return what one block of queries sees."""
    visible = range(row + 1 if causal else num_blocks)
    if row < num_global and not causal:
        return set(visible)
    seen = {c for c in visible if c < num_global or (window and abs(c - row) <= window // 2)}
    free = [c for c in visible if c not in seen]
    return seen | {free[place] for place in floyd(len(free), num_random, row, head, seed)}


def floyd(free, count, row, head, seed):
    """Return `count` of the numbers below `free`, or all of them, by Floyd's algorithm."""
    code = scramble(scramble(scramble(seed) ^ head) ^ row)
    chosen = set()
    for step in range(count):
        last = free - count + step
        if last >= 0:
            pick = scramble(code ^ step) * (last + 1) // 2**32
            chosen.add(last if pick in chosen else pick)
    return chosen


def keep(num_tokens, block_size, heads, causal=False, **counts):
    """Return what queries see as nested lists of bools, [heads][num_tokens][num_tokens]."""
    num_blocks = -(-num_tokens // block_size)
    by_head = [rows(num_blocks, head=head, causal=causal, **counts) for head in range(heads)]
    return [
        [
            [
                j // block_size in seen[i // block_size] and (j <= i or not causal)
                for j in range(num_tokens)
            ]
            for i in range(num_tokens)
        ]
        for seen in by_head
    ]
