"""Sequences of rows, held as two arrays: millions of them take a few bytes each; and the packing of rows into sequences."""

from array import array
from collections.abc import Iterator

import numpy as np


class Sequences:
    """The row numbers of each sequence: `sequences[s]` are those of sequence s, from 0, in their order."""

    def __init__(self, rows: np.ndarray, ends: np.ndarray) -> None:
        """rows: of all sequences, one after the other. ends: how many rows the sequences up to each one have, [sequences]."""
        self._rows, self._ends = rows.astype(np.int64, copy=False), ends.astype(np.int64, copy=False)

    @classmethod
    def alone(cls, rows: np.ndarray) -> "Sequences":
        """Make every row a sequence."""
        return cls(rows, np.arange(1, len(rows) + 1))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> tuple[int, ...]:
        return tuple(self._rows[self._ends[number - 1] if number else 0 : self._ends[number]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[number] for number in range(len(self)))

    def __add__(self, other: "Sequences") -> "Sequences":
        """Put the sequences of another behind these."""
        ends = np.concatenate([self._ends, other._ends + len(self._rows)])
        return Sequences(np.concatenate([self._rows, other._rows]), ends)

    def of(self, rows: np.ndarray) -> "Sequences":
        """Replace every row number by what `rows` has there."""
        return Sequences(rows[self._rows], self._ends)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add a value per row, [rows], up over the rows of each sequence, int64 of [sequences]."""
        so_far = np.concatenate([[0], np.cumsum(values[self._rows], dtype=np.int64)])
        return np.diff(so_far[self._ends], prepend=0)


def pack(lengths: np.ndarray, capacity: int) -> Sequences:
    """Pack rows of `lengths` tokens into sequences of at most `capacity` tokens; every row is used exactly once.

    Best-fit decreasing: the longest rows first, each into the fullest sequence that still has room for it; needs at most
    11/9 of the minimum number of sequences (Johnson et al. 1974) and nearly always less. Rows of equal length keep their
    order, so the result is deterministic. Raises ValueError for a row that is empty or above the capacity.
    """
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens; 1 to {capacity} fit into a sequence")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    # By room: the numbers of the sequences that have exactly so much.
    by_room = [array("q") for _ in range(capacity + 1)]
    # Bit r: some sequence has room for exactly r more tokens; the best fit is the lowest set bit from `length` up.
    rooms = count = 0
    chosen = np.empty(len(lengths), dtype=np.int64)
    # Views, as a list would have an object per row.
    numbers, sizes = chosen.data, lengths[order].astype(np.int64).data
    for place, length in enumerate(sizes):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, count
            count += 1
        numbers[place] = number
        if room > length:
            by_room[room - length].append(number)
            rooms |= 1 << (room - length)
    return Sequences(order[np.argsort(chosen, kind="stable")], np.cumsum(np.bincount(chosen, minlength=count)))
