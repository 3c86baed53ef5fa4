"""Times contenders in turns, so that whatever else the machine does strikes them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attn_ops.benchmark.case import Contender

_SHORTEST_SAMPLE = 2e-3  # seconds; shorter calls are repeated, or the clock would be timed
_FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the quartiles of the samples."""

    median: float
    lower_quartile: float
    upper_quartile: float
    samples: int


def time_in_turns(
    contenders: Sequence[Contender],
    threads: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Timing, ...]:
    """Sample each contender once per round for about `seconds`, at least three rounds.

    A round that alone outlasts the whole time is the only one.
    clock: what samples are read from, in seconds: `time.process_time` leaves out the time that
        other programs take, but adds up that of all threads.
    """
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    try:
        calibrated = [_calibrate(contender, threads, clock) for contender in contenders]
        rounds = [[once for _, once in calibrated]]
        while time.perf_counter() - begin < seconds or 1 < len(rounds) < _FEWEST_ROUNDS:
            rounds.append(
                [
                    _sample(contender, threads, repeats, clock)
                    for contender, (repeats, _) in zip(contenders, calibrated, strict=True)
                ]
            )
    finally:
        gc.enable()
    return tuple(_summarise(samples) for samples in zip(*rounds, strict=True))


def _sample(contender: Contender, threads: int, repeats: int, clock: Callable[[], float]) -> float:
    """Return the seconds per call of `repeats` calls."""
    torch.set_num_threads(contender.threads or threads)
    begin = clock()
    for _ in range(repeats):
        contender.run()
    return (clock() - begin) / repeats


def _calibrate(contender: Contender, threads: int, clock: Callable[[], float]) -> tuple[int, float]:
    """Return how many calls make a sample long enough, and the first such sample."""
    repeats = 1
    while (once := _sample(contender, threads, repeats, clock)) * repeats < _SHORTEST_SAMPLE:
        repeats = max(2 * repeats, int(1.2 * _SHORTEST_SAMPLE / once))
    return repeats, once


def _summarise(samples: Sequence[float]) -> Timing:
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, len(samples))
