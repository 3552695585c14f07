"""Numbers and texts as they are displayed."""

from __future__ import annotations

from ual_ray.formatting import amount, count, count_list, decimals, duration, gib, number, percent, plural, share, shorten


def test_numbers() -> None:
    assert [amount(value) for value in (12, 1234, 134515008, 7.6e9)] == ["12", "1.23K", "135M", "7.6B"]
    assert [gib(size) for size in (2**20, 2**30)] == ["1.0 MiB", "1.00 GiB"]
    assert [number(value) for value in (None, -0.001, 1.005e3)] == ["–", "0.00", "1005.00"]
    assert [share(value) for value in (None, 0, 0.001, 0.5, 0.999, 1)] == ["–", "0%", "<1%", "50%", ">99%", "100%"]
    assert [count(value) for value in (None, 1234567)] == ["–", "1,234,567"]
    counted = [plural(value, "row") for value in (0, 1, 1.2, 2, 12345)]
    assert counted == ["0 rows", "1 row", "1 row", "2 rows", "12,345 rows"]
    assert count_list({"train": 141, "test": 2}) == "141 train, 2 test"


def test_an_interval_is_not_rounded_to_the_mark_that_it_is_beyond() -> None:
    beyond = [(0.004, 1, 0), (0.006, 1, 0), (-1, -0.004, 0), (0, 1, 0), (-0.001, 0.001, 0), (50.004, 51, 50), (1e-30, 1, 0)]
    assert [decimals(low, high, mark, 2) for low, high, mark in beyond] == [3, 2, 3, 2, 2, 3, 12]


def test_levels_have_all_their_digits() -> None:
    assert [percent(level) for level in (0.9, 0.95, 0.983, 0.9999999)] == ["90%", "95%", "98.3%", "99.99999%"]


def test_durations_have_their_two_largest_units() -> None:
    seconds = (None, 5, 59.4, 600, 7260, 1e6)
    assert [duration(value) for value in seconds] == ["–", "5.0 s", "59.4 s", "10 min 0 s", "2 h 1 min", "11 days 13 h"]


def test_texts_are_truncated_with_a_mark() -> None:
    assert [shorten(text, 5) for text in ("short", "longer", "four five")] == ["short", "long…", "four…"]
