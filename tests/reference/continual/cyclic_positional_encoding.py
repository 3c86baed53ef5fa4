"""Cyclic positional encoding, number by number: Ma et al. 2021, arXiv:2110.02544.

Equation 4 and appendix B: sines and cosines of z(p) folded back and forth, for periods that rise
evenly from N^(1 / floor(d / 2)) to N; with the authors' averaging of neighbours, less the mean.
"""

import math


def cyclic_pattern(num_positions, num_features, *, mean_pooling=True):
    """Return the rows of the pattern as lists."""
    count = num_features // 2
    lowest = num_positions ** (1 / count)
    periods = []
    for k in range(count):
        exact = lowest + (num_positions - lowest) * k / (count - 1) if count > 1 else lowest
        periods.append(num_positions if k == count - 1 else math.floor(exact))
    rows = []
    for p in range(num_positions):
        row = []
        for i in range(num_features):
            place = 3 * (i // 3) + 1
            period = periods[place] if place < count else periods[-1]
            turns = math.ceil(num_positions / period)
            z = p / num_positions * turns * period
            folded = abs(z % (2 * period) - period)
            phase = 0 if i <= count else 2 * math.pi * (count - i) / count
            wave = math.cos if i % 2 == 1 else math.sin
            row.append(wave(2 * math.pi / period * folded + phase))
        rows.append(row)
    means = [sum(column) / num_positions for column in zip(*rows, strict=True)]
    reach = range(-2, 3) if mean_pooling else range(1)
    return [
        [
            sum(rows[(p + r) % num_positions][i] for r in reach) / len(reach) - means[i]
            for i in range(num_features)
        ]
        for p in range(num_positions)
    ]
