"""The user's error: what is wrong, what was found, what is legal, what to do."""

from __future__ import annotations

import pytest

from ual_ray.errors import UserError


def test_the_message_has_one_line_per_part_in_order() -> None:
    error = UserError("data.path does not exist", value="x.csv", legal="a file", fix="name another")
    assert str(error) == "data.path does not exist\n  found: x.csv\n  legal: a file\n  to do: name another"


@pytest.mark.parametrize(("value", "expected"), [(None, "odd"), (0, "odd\n  found: 0"), ("", "odd\n  found: ")])
def test_only_none_is_left_out(value: object, expected: str) -> None:
    assert str(UserError("odd", value=value)) == expected


def test_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="odd"):
        raise UserError("odd")
