"""Stage 5: what decides."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import model_validator

from ual_ray.config.evaluate import BenchmarkConfig
from ual_ray.config.names import HELD_OUT
from ual_ray.config.registry import BENCHMARKS
from ual_ray.config.section import Section, key

# Primary measures that no benchmark alone yields: of the judge, and of the calibration.
WIN_RATE = "win_rate"
ADJUSTED_NLL = f"{HELD_OUT}.nll_adjusted"
# Without a floor removed, which the default removes: it may decide where it is named, else it is shown.
SCALED_NLL = f"{HELD_OUT}.nll_scaled"
OPEN_ENDED = "open_ended"


class ReportConfig(Section):
    """Stage 5: the measures that decide, in the order in which they are tested."""

    primary: tuple[str, ...] | None = key(
        None,
        affects="",
        description="primary measures in the order in which they are tested, each only where all before it were significant: "
        "BENCHMARK.METRIC such as gsm8k.exact_match_strict, win_rate (of judge.model, at equal lengths), "
        f"{ADJUSTED_NLL}; null = those that the run has, in this order. Recorded before the first results",
    )

    @model_validator(mode="after")
    def _each_once(self) -> ReportConfig:
        if self.primary is not None and (not self.primary or len(set(self.primary)) < len(self.primary)):
            raise ValueError(f"primary: one measure or more, each once; got {', '.join(self.primary) or 'none'}")
        return self


def scores_of(benchmarks: Mapping[str, BenchmarkConfig]) -> dict[str, list[str]]:
    """List by benchmark the measures that its answers yield, the main one first; raw NLL, which never decides, is not one."""
    metrics = {name: BENCHMARKS[config.kind].metrics for name, config in benchmarks.items() if config.kind != HELD_OUT}
    return {name: [f"{name}.{metric}" for metric in found] for name, found in metrics.items() if found}
