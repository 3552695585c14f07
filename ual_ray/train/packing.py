"""Packing: assign rows to sequences of fixed capacity. Pure."""

from __future__ import annotations

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[tuple[int, ...]]:
    """Pack rows of `lengths` tokens into sequences of at most `capacity` tokens; every row is used exactly once.

    Best-fit decreasing: the longest rows first, each into the fullest sequence that still has room for it; needs at most
    11/9 of the minimum number of sequences (Johnson et al. 1974) and nearly always less. Rows of equal length keep their
    order, so the result is deterministic. Raises ValueError for a row that is empty or above the capacity.
    """
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens; 1 to {capacity} fit into a sequence")
    sequences: list[list[int]] = []
    by_room: list[list[list[int]]] = [[] for _ in range(capacity + 1)]
    # Bit r: some sequence has room for exactly r more tokens; the best fit is the lowest set bit from `length` up.
    rooms = 0
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, sequence = capacity, []
            sequences.append(sequence)
        sequence.append(row)
        if room > length:
            by_room[room - length].append(sequence)
            rooms |= 1 << (room - length)
    return [tuple(sequence) for sequence in sequences]
