"""What the commands share: overrides made of arguments, and the folders that stages leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.cli.arguments import find, override
from ual_ray.config.load import load
from ual_ray.errors import UserError


@pytest.mark.parametrize("text", ["answers #2.jsonl", "2024", "a: b.jsonl", "[x].jsonl", "null", 'müller\'s "rows".csv', "a,b"])
def test_an_argument_is_taken_as_the_text_it_is(text: str) -> None:
    assert load(None, [override("data.path", text)]).data.path == text


@given(st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc"), exclude_characters="$\\"), min_size=1))
def test_whatever_it_is(text: str) -> None:
    assert load(None, [override("data.path", text)]).data.path == text


def test_a_folder_of_another_stage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ual.log").touch()
    with pytest.raises(UserError, match=r"there is no 'smoothed.parquet' in the folder(?s:.*)ual smooth"):
        find(tmp_path, "smoothed.parquet", "ual smooth")
    (tmp_path / "part.parquet").touch()
    assert find(tmp_path, "smoothed.parquet", "ual smooth") == tmp_path
    (tmp_path / "smoothed.parquet").touch()
    assert find(tmp_path, "smoothed.parquet", "ual smooth") == tmp_path / "smoothed.parquet"
