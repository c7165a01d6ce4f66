"""The order of the training windows: a keyed permutation per epoch, so position is one number and no state.

A balanced Feistel network over the next even number of bits, walked until it lands inside the range
(Black and Rogaway, 2002): a bijection of 0..size-1 in O(1) memory.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64's finaliser


def window_of(sample: NDArray[np.int64], windows: int, seed: int, shuffle: bool = True) -> NDArray[np.int64]:
    """Window index of each global sample index; sample // windows is the epoch.

    Each epoch has its own order, in which every window comes exactly once.
    """
    if windows < 1:
        raise ValueError("there is no window to choose from")
    epochs, places = np.divmod(sample, windows)
    if not shuffle:
        return places
    result = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = _permuted(places[chosen], windows, _epoch_key(seed, int(epoch)))
    return result


def _epoch_key(seed: int, epoch: int) -> np.uint64:
    return np.uint64(_mixed(np.array([seed], dtype=np.uint64), np.uint64(epoch))[0])


def _permuted(places: NDArray[np.int64], size: int, key: np.uint64) -> NDArray[np.int64]:
    half_bits = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half_bits, key)
    # The domain is less than 4 x the range, so few walks are needed; each stays on its own cycle.
    outside = values >= size
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, key)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: np.uint64, key: np.uint64) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    # A key for each round: with one key for all, neighbouring samples get neighbouring windows far too often.
    for round_key in _mixed(np.arange(ROUNDS, dtype=np.uint64), key):
        left, right = right, left ^ (_mixed(right, round_key) & mask)
    return (left << half_bits) | right


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        mixed = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * multiplier
        return mixed ^ (mixed >> np.uint64(31))
