"""The user's error: what is wrong, what was got, what is expected, the fix."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ual_ray
from ual_ray.errors import UserError

PACKAGE = Path(ual_ray.__file__).parent


def test_the_message_has_one_line_per_part_in_order() -> None:
    error = UserError("data.path does not exist", got="x.csv", expected="a file", fix="name another")
    assert str(error) == "data.path does not exist\n  got: x.csv\n  expected: a file\n  fix: name another"


@pytest.mark.parametrize(("value", "expected"), [(None, "odd"), (0, "odd\n  got: 0"), ("", "odd\n  got: ")])
def test_only_none_is_left_out(value: object, expected: str) -> None:
    assert str(UserError("odd", got=value)) == expected


def test_it_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="odd"):
        raise UserError("odd")


def calls(file: Path, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


@pytest.mark.parametrize("file", [*PACKAGE.glob("data/*.py"), *PACKAGE.glob("models/*.py")], ids=lambda file: file.name)
def test_every_refusal_of_data_and_models_states_what_to_do(file: Path) -> None:
    without = [ast.unparse(call)[:120] for call in calls(file, "UserError") if "fix" not in {key.arg for key in call.keywords}]
    assert without == []


def test_every_reason_why_a_template_leaves_out_a_row_states_what_to_do() -> None:
    files = [PACKAGE / "models" / name for name in ("chat.py", "given.py")]
    reasons = [ast.unparse(call) for file in files for call in calls(file, "ValueError")]
    assert len(reasons) > 5
    remedies = ("OTHER_TEMPLATE", "(use ", "(data.", "(correct ")
    assert [reason for reason in reasons if not any(remedy in reason for remedy in remedies)] == []
