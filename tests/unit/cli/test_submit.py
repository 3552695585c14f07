"""`ual submit` refuses what no job server has to be asked about."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.cli.pipeline import submit
from ual_ray.errors import UserError
from ual_ray.jobs import submit as jobs


@pytest.mark.parametrize("key", ["data.path", "elicit.templates", "model", "train.accelerate_config"])
@pytest.mark.parametrize("name", ["~nobody_has_this_name/a.jsonl", "long" * 100, "nul\0.jsonl"], ids=["user", "long", "nul"])
def test_a_name_that_no_file_can_have_is_refused(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> int:
        raise AssertionError("it was submitted")

    monkeypatch.setattr(jobs, "submit", never)
    with pytest.raises(UserError, match=f"{key} cannot be a path here"):
        submit([f'{key}="{name}"'.replace("\0", "\\0"), "output=/shared/out"])
