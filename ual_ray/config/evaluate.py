"""Stage 4: benchmarks and calibration."""

from __future__ import annotations

from typing import Literal

from ual_ray.config.data import DataConfig
from ual_ray.config.names import GSM8K, HELD_OUT, BenchmarkName, DtypeName
from ual_ray.config.registry import BENCHMARKS
from ual_ray.config.section import Section, key


class BenchmarkConfig(Section):
    """One benchmark: where its questions come from and how they are asked."""

    kind: BenchmarkName = key(HELD_OUT, affects="", description=f"benchmark type: {', '.join(BENCHMARKS)}")
    path: str | None = key(
        None,
        affects="",
        names="data",
        description="questions: file, folder, cloud URI or hub data set; null = rows of the run's test split that are such "
        "questions",
    )
    columns: dict[str, str] = key(
        default_factory=dict, affects="", description="map from expected to actual column names, such as {question: prompt}"
    )
    subset: str | None = key(None, affects="", description="hub data set configuration, where it has several")
    split: str | None = key(None, affects="", description="split of a hub data set or saved datasets directory; null = test")
    revision: str | None = key(None, affects="", description="branch, tag or commit of a hub data set; null = latest")
    max_rows: int | None = key(
        None,
        ge=1,
        affects="",
        description="maximum number of questions, the first ones; held_out: those with the lowest ids, a fixed random subset. "
        "null = all, but 20,000 for held_out",
    )
    shots: Literal[0, 5] = key(
        0, affects="", description="gsm8k: number of few-shot examples, 0 or 5; 0 = zero-shot with the chat template"
    )
    max_new_tokens: int | None = key(
        None,
        ge=1,
        affects="",
        description="maximum length of an answer (greedy decoding), in tokens; null = 1024 (math 4096, open_ended "
        "2048); must be below engine.max_model_len",
    )

    def data(self) -> DataConfig | None:
        """Spell where the questions are as a data section, for the readers; None for those of the run's own test split."""
        if self.path is None:
            return None
        return DataConfig(path=self.path, subset=self.subset, split=self.split, revision=self.revision)


class CalibrationConfig(Section):
    """How well probabilities match how often a model is right, before and after temperature scaling."""

    enabled: bool = key(True, affects="calibration", description="measure the calibration of every model")
    max_tokens: int = key(
        20_000,
        ge=1,
        affects="calibration",
        description="maximum number of response tokens to probe, per split (validation, test)",
    )
    bins: int = key(15, ge=2, affects="calibration", description="number of bins of the expected calibration error")


class ClusteringConfig(Section):
    """How the hidden states of frequent tokens lie before and after training."""

    tokens: int = key(
        10,
        ge=0,
        affects="calibration",
        description="number of token classes: the most frequent response tokens of the test split; 0 = disabled",
    )
    positions: int = key(100, ge=2, affects="calibration", description="maximum number of positions sampled per class")


def _default_benchmarks() -> dict[str, BenchmarkConfig]:
    return {kind: BenchmarkConfig(kind=kind) for kind in (HELD_OUT, GSM8K)}


class EvaluateConfig(Section):
    """Stage 4: what every model is measured on."""

    benchmarks: dict[str, BenchmarkConfig] = key(
        default_factory=_default_benchmarks,
        min_length=1,
        affects="",
        description="benchmarks by name; benchmarks of a configuration file replace these",
    )
    lm_eval: tuple[str, ...] = key(
        (),
        affects="",
        description="tasks of lm-evaluation-harness, such as [mmlu, ifeval], or task files (.yaml, which may run "
        "Python code next to them), for every model of `ual run` and `ual experiment` (extra `harness`)",
    )
    dtype: DtypeName = key(
        "float32",
        affects="answers calibration",
        description="inference precision for evaluation; bfloat16 rounding can exceed the differences between arms",
    )
    calibration: CalibrationConfig = key(
        default_factory=CalibrationConfig, affects="calibration", description="calibration before and after temperature scaling"
    )
    clustering: ClusteringConfig = key(
        default_factory=ClusteringConfig,
        affects="calibration",
        description="clustering of the hidden states of frequent tokens",
    )
    resamples: int = key(
        2000, ge=100, affects="calibration win_rates", description="bootstrap resamples per confidence interval and comparison"
    )
    confidence: float = key(0.95, gt=0.5, lt=1, affects="win_rates", description="confidence level of intervals and verdicts")
