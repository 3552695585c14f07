"""The user's error: what is wrong, what was got, what is expected, the fix."""

from __future__ import annotations

import pytest

from ual_ray.errors import UserError


def test_the_message_has_one_line_per_part_in_order() -> None:
    error = UserError("data.path does not exist", got="x.csv", expected="a file", fix="name another")
    assert str(error) == "data.path does not exist\n  got: x.csv\n  expected: a file\n  fix: name another"


@pytest.mark.parametrize(("value", "expected"), [(None, "odd"), (0, "odd\n  got: 0"), ("", "odd\n  got: ")])
def test_only_none_is_left_out(value: object, expected: str) -> None:
    assert str(UserError("odd", got=value)) == expected


def test_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="odd"):
        raise UserError("odd")
