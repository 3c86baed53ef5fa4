"""Fourier mixing, pooling and large-kernel attention, one element of the result at a time."""

import math

import torch


def fourier(x):
    """Return the real part of the double sum that transforms x [M, K]."""
    length, width = x.shape
    angles = [
        torch.arange(n, dtype=x.dtype).outer(torch.arange(n, dtype=x.dtype)) * (2 * math.pi / n)
        for n in (length, width)
    ]
    rows, channels = angles
    phase = rows[:, None, :, None] + channels[None, :, None, :]  # [frequency, frequency, M, K]
    return (phase.cos() * x).sum((2, 3))


def pool(image, size, stride, padding, keep=None):
    """Return, for each window of image [side, side, K], its kept pixels' mean less its centre."""
    side = image.shape[0]
    inside = range(side)
    keep = torch.ones(side, side, dtype=torch.bool) if keep is None else keep
    firsts = range(-padding, side + padding - size + 1, stride)
    firsts = [first for first in firsts if first + size // 2 in inside]
    rows = []
    for top in firsts:
        for left in firsts:
            window = [
                image[a, b]
                for a in range(top, top + size)
                for b in range(left, left + size)
                if a in inside and b in inside and keep[a, b]
            ]
            mean = sum(window) / len(window) if window else torch.zeros_like(image[0, 0])
            place = (top + size // 2, left + size // 2)
            rows.append(mean - image[place] if keep[place] else mean)
    return torch.stack(rows)


def convolve(image, weight, bias, dilation):
    """Return the convolution of image [side, side, C], each channel by its weight [C, 1, n, n]."""
    side, reach = image.shape[0], weight.shape[-1] // 2
    out = torch.zeros_like(image) + bias
    for row in range(side):
        for column in range(side):
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    y, x = row + a * dilation, column + b * dilation
                    if y in range(side) and x in range(side):
                        out[row, column] += image[y, x] * weight[:, 0, a + reach, b + reach]
    return out


def visual(image, state):
    """Return image [side, side, C] after the block whose parameters are `state`."""

    def mix(x, name):
        return x @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"]

    def depthwise(x, name, dilation):
        return convolve(x, state[f"{name}.weight"], state[f"{name}.bias"], dilation)

    x = mix(image, "block.0")
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    near = depthwise(x, "block.2.conv0", 1)
    far = depthwise(near, "block.2.conv_spatial", 3)
    return image + mix(x * mix(far, "block.2.conv1"), "block.3")
