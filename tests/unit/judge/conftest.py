"""A pool of judges in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from judge_bench import Bench

from ual_ray.judge import stage as judging
from ual_ray.judge import win_rate


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(judging, "map_file", made.map_file)
    # Fits are slow, and test_win_rate's subject; below, those of made-up verdicts are real.
    monkeypatch.setattr(win_rate, "_fit_as_alpaca_eval", lambda terms, *_: np.zeros(terms.shape[1]))
    return made
