"""A short fuzz of what reads text that others wrote: configurations, and replies of endpoints. bench/fuzz.py takes longer."""

from __future__ import annotations

from typing import Any

import pytest
from fuzzing import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Configurations take about 50 ms each.
EXAMPLES = {"overrides": 60, "file": 60, "body": 300, "text": 500}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES[name], deadline=10_000, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def run(data: Any) -> None:
        target.check(data.draw(target.inputs))

    run()
