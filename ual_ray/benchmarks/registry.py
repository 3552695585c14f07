"""Every benchmark by its kind."""

from __future__ import annotations

from collections.abc import Mapping

from ual_ray.benchmarks.benchmark import Benchmark
from ual_ray.benchmarks.gsm8k import Gsm8k
from ual_ray.benchmarks.held_out import HeldOut
from ual_ray.benchmarks.math import Math
from ual_ray.benchmarks.multiple_choice import MultipleChoice
from ual_ray.benchmarks.open_ended import OpenEnded
from ual_ray.config import BenchmarkConfig

KINDS: dict[str, type[Benchmark]] = {kind.kind: kind for kind in (HeldOut, Gsm8k, Math, MultipleChoice, OpenEnded)}


def make_benchmarks(configs: Mapping[str, BenchmarkConfig]) -> dict[str, Benchmark]:
    """Build the configured benchmarks, by name."""
    return {name: KINDS[config.kind](config) for name, config in configs.items()}
