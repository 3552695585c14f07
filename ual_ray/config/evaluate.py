"""Stage 4: benchmarks, calibration, and pairwise judging; stage 5: what decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from ual_ray.config.data import DataConfig
from ual_ray.config.names import AUTO, GSM8K, HELD_OUT, SFT, BenchmarkName, DtypeName, ReadingName
from ual_ray.config.registry import BENCHMARKS
from ual_ray.config.section import Section, Share, key

# Primary measures that no benchmark alone yields: of the judge, and of the calibration.
WIN_RATE = "win_rate"
ADJUSTED_NLL = f"{HELD_OUT}.nll_adjusted"
# Without a floor removed, which the default removes: it may decide where it is named, else it is shown.
SCALED_NLL = f"{HELD_OUT}.nll_scaled"
OPEN_ENDED = "open_ended"


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


class EvaluateConfig(Section):
    """Stage 4: what every model is measured on."""

    benchmarks: dict[str, BenchmarkConfig] = key(
        default_factory=lambda: {kind: BenchmarkConfig(kind=kind) for kind in (HELD_OUT, GSM8K)},
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
        description="inference precision for evaluation, with values as engine.dtype; bfloat16 rounding can exceed the "
        "differences between arms",
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


class JudgeConfig(Section):
    """A model that compares two answers; it runs on the engine of scoring."""

    model: str | None = key(
        None,
        affects="",
        names="model",
        description="judge model: hub name, local directory, 'demo', or the name that the server uses; null = no judge",
    )
    more_models: tuple[str, ...] = key(
        (),
        affects="",
        names="model",
        description="further judge models, each with its own win rates, to measure their agreement; judge.model alone decides",
    )
    orders: Literal["both", "random"] = key(
        "both",
        affects="win_rates",
        description="both = show every pair in both orders and average (twice the calls; shows the position bias); "
        "random = one order, chosen at random per question",
    )
    against: str | tuple[str, ...] = key(
        SFT,
        affects="",
        description="reference answers of every comparison, one or a list: an arm, base, or reference (those in the data file)",
    )
    mode: ReadingName = key(
        "logprobs",
        affects="verdicts",
        description="how a preference is read: logprobs = from the log-probabilities of both verdicts; sampled = from one "
        "sampled verdict",
    )
    reply_tokens: int = key(
        32, ge=1, affects="verdicts", description="maximum length of a sampled verdict, in tokens, without its thought"
    )
    thinking_tokens: int = key(
        0,
        ge=0,
        affects="verdicts",
        description="budget of a thought before the verdict, in tokens; the verdict is read behind its end. 0 = do not think",
    )
    min_choice_mass: Share = key(
        0.01,
        ge=0,
        le=1,
        affects="verdicts",
        description="a pair gets no verdict if the probability of both letters together is less than this",
    )
    trial_rows: int = key(
        10, ge=1, affects="", description="number of pairs judged first, to test whether verdicts can be parsed"
    )
    min_parse_share: Share = key(
        0.5, ge=0, le=1, affects="", description="abort if a smaller share of trial verdicts can be parsed"
    )
    templates: str | None = key(
        None, affects="", names="file", description="YAML file of prompts; null = ual_ray/judge/prompts.yaml"
    )
    dtype: DtypeName = key(
        AUTO,
        affects="verdicts",
        description="inference precision of the judge, with values as engine.dtype",
    )

    @model_validator(mode="after")
    def _judges_differ(self) -> JudgeConfig:
        if self.more_models and self.model is None:
            raise ValueError("judge.more_models needs judge.model, the judge that decides")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"judge.more_models: every judge once, and not judge.model; got {', '.join(self.models)}")
        if not self.references or len(set(self.references)) < len(self.references):
            raise ValueError(f"judge.against: one reference or more, each once; got {', '.join(self.references) or 'none'}")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """All judges, the one that decides first; empty without one."""
        return () if self.model is None else (self.model, *self.more_models)

    @property
    def references(self) -> tuple[str, ...]:
        """What every comparison is against, in the order of the configuration."""
        return (self.against,) if isinstance(self.against, str) else self.against

    def without_judges(self) -> JudgeConfig:
        """Copy the section so that nothing is judged."""
        return self.model_copy(update={"model": None, "more_models": ()})


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
