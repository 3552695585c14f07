"""Benchmarks, one file each: how a model is asked, and how its answer is read and scored. config/registry.py lists them."""

from collections.abc import Mapping

from ual_ray.benchmarks.benchmark import Benchmark
from ual_ray.config import BenchmarkConfig
from ual_ray.config.registry import BENCHMARKS

__all__ = ["BENCHMARKS", "Benchmark", "make_benchmarks"]


def make_benchmarks(configs: Mapping[str, BenchmarkConfig]) -> dict[str, Benchmark]:
    """Build the configured benchmarks, by name."""
    return {name: BENCHMARKS[config.kind](config) for name, config in configs.items()}
