"""The whole configuration: one section per stage."""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal

from pydantic import ValidationError, field_validator, model_validator

from ual_ray.config.data import DataConfig
from ual_ray.config.elicit import ElicitConfig
from ual_ray.config.engine import EngineConfig
from ual_ray.config.evaluate import (
    ADJUSTED_NLL,
    OPEN_ENDED,
    SCALED_NLL,
    WIN_RATE,
    EvaluateConfig,
    JudgeConfig,
    ReportConfig,
    scores_of,
)
from ual_ray.config.experiment import LARGEST_SEED, ExperimentConfig, KnownTruthConfig
from ual_ray.config.names import (
    BASE,
    DEMO,
    FILE_NAME,
    NO_SMOOTHING,
    OVERALL,
    REFERENCE_ANSWERS,
    SFT,
    UAL,
    VERSUS,
    is_file_name,
)
from ual_ray.config.registry import ESTIMATORS
from ual_ray.config.section import Section, key
from ual_ray.config.smooth import CONTROLS, ArmConfig
from ual_ray.config.train import TrainConfig

# The weight that is a function of one estimator alone.
FLOW, NLL = "flow", "nll"
# Ray's own word for a cluster that is started here.
LOCAL_CLUSTER = "local"


class TrackingConfig(Section):
    """Where MLflow keeps runs, models, tables and plots."""

    uri: str | None = key(
        None, affects="", description="MLflow tracking URI, such as http://HOST:5000; null = SQLite store in the output folder"
    )
    experiment: str = key("ual_ray", min_length=1, max_length=500, affects="", description="MLflow experiment name")
    register_as: str = key(
        "ual", max_length=150, affects="", description="prefix of registered model names: '<register_as>-<arm>'"
    )
    models: Literal["upload", "reference", "none"] = key(
        "upload",
        affects="",
        description="trained models in MLflow: upload = registered with their files; reference = registered without files, "
        "with a tag that names their directory; none = not registered",
    )
    traces: int = key(
        50,
        ge=0,
        le=1000,
        affects="",
        description="sampled calls of elicitor and judge to log as MLflow traces per run; 0 = none",
    )
    system_metrics: bool = key(
        True,
        affects="",
        description="log CPU, memory and GPU use of the first 16 training workers, every 10 seconds, as system/rank_0/...",
    )
    retry_seconds: float = key(
        5,
        gt=0,
        affects="",
        description="initial delay before retrying an unreachable MLflow server, in seconds; grows with every retry",
    )
    catch_up_seconds: float = key(
        60,
        ge=0,
        affects="",
        description="maximum time to wait for an unreachable MLflow server when a command ends, in seconds",
    )

    @field_validator("register_as")
    @classmethod
    def _names_models(cls, value: str) -> str:
        """Refuse it before a training whose model would not be registered."""
        if refused := sorted({*"/:'\""} & {*value}):
            raise ValueError(f"MLflow takes no {' '.join(refused)} in the name of a model")
        return value


class RuntimeConfig(Section):
    """The Ray cluster."""

    address: str | None = key(
        None, affects="", description="Ray address ('auto', 'ray://host:10001'); null = start a local cluster"
    )
    check_memory: bool = key(
        True, affects="", description="abort before a stage that cannot fit into this machine's free memory"
    )

    @property
    def joined(self) -> str | None:
        """Address of the cluster that a run joins: `address`, or else RAY_ADDRESS. None = it starts one on this machine."""
        address = ((self.address or "").strip() or os.environ.get("RAY_ADDRESS", "")).strip()
        return None if address in ("", LOCAL_CLUSTER) else address


class Config(Section):
    """Everything `ual run` needs; its defaults are those of the demo data and model."""

    data: DataConfig = key(default_factory=DataConfig, affects="", description="training and evaluation rows")
    model: str = key(DEMO, affects="", names="model", description="model to fine-tune: hub name, local directory, or 'demo'")
    trust_remote_code: bool = key(
        False, affects="", description="run Python code from model repositories; enable only for code you have reviewed"
    )
    engine: EngineConfig = key(
        default_factory=EngineConfig, affects="", description="inference engine of elicitation, evaluation and judging"
    )
    elicit: ElicitConfig = key(default_factory=ElicitConfig, affects="", description="stage 1: uncertainty scores")
    arms: dict[str, ArmConfig] = key(
        default_factory=lambda: {SFT: ArmConfig(map=NO_SMOOTHING), UAL: ArmConfig(map="mean_matched")},
        min_length=1,
        affects="",
        description="stages 2 and 3: the arms to compare, each with a map from uncertainty to alpha; arms of a "
        "configuration file replace these",
    )
    train: TrainConfig = key(default_factory=TrainConfig, affects="", description="stage 3: fine-tuning")
    evaluate: EvaluateConfig = key(default_factory=EvaluateConfig, affects="", description="stage 4: evaluation")
    judge: JudgeConfig = key(
        default_factory=JudgeConfig,
        affects="",
        description="stage 4: pairwise comparison of open-ended answers by a judge model",
    )
    report: ReportConfig = key(default_factory=ReportConfig, affects="", description="stage 5: the measures that decide")
    experiment: ExperimentConfig = key(
        default_factory=ExperimentConfig, affects="", description="what `ual experiment` repeats over one elicitation"
    )
    known_truth: KnownTruthConfig = key(
        default_factory=KnownTruthConfig, affects="", description="made-up data of `ual experiment known_truth`"
    )
    tracking: TrackingConfig = key(default_factory=TrackingConfig, affects="", description="MLflow tracking")
    runtime: RuntimeConfig = key(default_factory=RuntimeConfig, affects="", description="Ray cluster")
    output: str = key(
        "runs/demo",
        min_length=1,
        affects="",
        names="output",
        description="output folder of the run: a path, or a URI such as s3://BUCKET/RUN",
    )
    seed: int = key(
        0,
        ge=0,
        le=LARGEST_SEED,
        affects="scores alphas weights verdicts",
        description="random seed of data order, sampling, bootstrap, adapter initialization and random controls",
    )

    @model_validator(mode="after")
    def _endpoint_can_measure(self) -> Config:
        if not self.engine.remote:
            return self
        if impossible := sorted(name for name in self.elicit.estimators if ESTIMATORS[name].needs_likelihood):
            left = [name for name in self.elicit.estimators if name not in impossible] or ["verbalized_error", "p_true"]
            raise ValueError(
                f"elicit.estimators {impossible}: a server does not give the likelihood of a text; set "
                f"elicit.estimators=[{','.join(left)}], also where it only judges, or use engine.kind=vllm"
            )
        if self.elicit.mode == "logprobs" and (self.elicit.scale == "0-100" or not self.engine.endpoint.logprobs):
            raise ValueError(
                "elicit.mode=logprobs needs a scale of one-token numbers and a server with log-probabilities; "
                "set elicit.mode=sampled, or another elicit.scale"
            )
        if self.elicit.adapter:
            raise ValueError("elicit.adapter is for engine.kind=vllm; a server names its adapters as models of their own")
        return self

    @model_validator(mode="after")
    def _names_are_file_names(self) -> Config:
        for arm in self.arms:
            if not is_file_name(arm) or arm in (BASE, REFERENCE_ANSWERS):
                raise ValueError(
                    f"arm '{arm}' must be {FILE_NAME}, and neither '{BASE}' (the untrained model) nor '{REFERENCE_ANSWERS}'"
                )
            if VERSUS in arm.split("-"):
                raise ValueError(f"arm '{arm}' has '{VERSUS}' between dashes, which names pairs of arms; take another name")
        if alike := [name for name, times in Counter(map(str.casefold, self.arms)).items() if times > 1]:
            raise ValueError(f"arms that differ in capitals alone would share a folder on some disks: {', '.join(alike)}")
        for name in self.evaluate.benchmarks:
            if not is_file_name(name) or name == OVERALL:
                raise ValueError(
                    f"evaluate.benchmarks: '{name}' must be {FILE_NAME}, and not '{OVERALL}', the name of all of them"
                )
        return self

    @model_validator(mode="after")
    def _arms_can_train(self) -> Config:
        for name, arm in self.arms.items():
            try:
                arm.training(self.train)
            except ValidationError as error:
                raise ValueError(f"arms.{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
            if unread := arm.unread():
                raise ValueError(
                    f"arms.{name}: map={arm.map}{f' of base={arm.base}' if arm.map in CONTROLS else ''}, weight={arm.weight} "
                    f"and missing={arm.missing} do not read {', '.join(unread)}: drop {'it' if len(unread) == 1 else 'them'}"
                )
            own = next((f"{one}={value}" for one in ("prior", "prior_file") if (value := getattr(arm, one)) is not None), None)
            if own and (without := arm.never_smooths()):
                raise ValueError(
                    f"arms.{name}: labels are smoothed towards {own}, but {without} does not smooth: drop one of both"
                )
            if arm.weight == FLOW and (read := arm.uncertainty or self.elicit.uncertainty) != NLL:
                raise ValueError(
                    f"arms.{name}: weight={FLOW} is exp(-l / tau) of a row's NLL l, made from the uncertainty '{NLL}'; "
                    f"got '{read}': set arms.{name}.uncertainty={NLL} and add it to elicit.estimators"
                )
        return self

    @model_validator(mode="after")
    def _prior_is_used(self) -> Config:
        prior, arms = self.train.prior, self.arms.values()
        if prior == "uniform" or any(not arm.never_smooths() and arm.training(self.train).prior == prior for arm in arms):
            return self
        found = ", ".join(f"arms.{name}: {arm.never_smooths() or f'prior={arm.prior}'}" for name, arm in self.arms.items())
        raise ValueError(f"train.prior={prior} is used by no arm ({found}): drop it, or add an arm that smooths towards it")

    @model_validator(mode="after")
    def _learning_rates_can_be_tried(self) -> Config:
        if not self.experiment.learning_rates:
            return self
        if own := [name for name, arm in self.arms.items() if arm.learning_rate is not None]:
            raise ValueError(
                f"experiment.learning_rates are tried for every arm, but arms.{own[0]}.learning_rate is set: drop one of both"
            )
        if not self.data.validation_share:
            raise ValueError("experiment.learning_rates are chosen by validation rows: set data.validation_share above 0")
        return self

    @model_validator(mode="after")
    def _judge_has_a_side(self) -> Config:
        sides = [*self.arms, BASE, REFERENCE_ANSWERS]
        for name in self.judge.references if self.judge.model is not None else ():
            if name not in sides:
                raise ValueError(f"judge.against '{name}' must be one of {', '.join(sides)}")
        return self

    @model_validator(mode="after")
    def _primary_measures_are_measured(self) -> Config:
        named = {f"experiment.primary.{scenario}": found for scenario, found in self.experiment.primary.items()}
        for where, measures in {"report.primary": self.report.primary or (), **named}.items():
            for name in measures:
                if name in self.lacking():
                    raise ValueError(f"{where}: '{name}' needs {self.lacking()[name]}")
                if name not in self.measures():
                    raise ValueError(f"{where}: '{name}' is not measured; expected {', '.join(self.measures())}")
            if where != "report.primary" and (not measures or len(set(measures)) < len(measures)):
                raise ValueError(f"{where}: one measure or more, each once; got {', '.join(measures) or 'none'}")
        return self

    def measures(self) -> list[str]:
        """List what may decide: every score of a benchmark, win rates, the likelihoods."""
        scores = [measure for found in scores_of(self.evaluate.benchmarks).values() for measure in found]
        return [*scores, *(name for name in (WIN_RATE, ADJUSTED_NLL, SCALED_NLL) if name not in self.lacking())]

    def primary_measures(self) -> tuple[str, ...]:
        """Return the measures that decide, in their order: the given ones, or the main ones of what the run measures."""
        if self.report.primary is not None:
            return self.report.primary
        main = [found[0] for found in scores_of(self.evaluate.benchmarks).values()]
        return (*main, *(name for name in (WIN_RATE, ADJUSTED_NLL) if name not in self.lacking()))

    def in_scenario(self, name: str) -> Config:
        """Return the configuration of a scenario of the experiment: with the measures that decide there."""
        measures = self.experiment.primary.get(name)
        return self if measures is None else self.model_copy(update={"report": ReportConfig(primary=measures)})

    def lacking(self) -> dict[str, str]:
        """State what to set for the measures that this configuration does not yield, by measure."""
        found = {}
        if self.judge.model is None or OPEN_ENDED not in {one.kind for one in self.evaluate.benchmarks.values()}:
            found[WIN_RATE] = "judge.model, and a benchmark of kind open_ended in evaluate.benchmarks"
        if not self.evaluate.calibration.enabled or not self.data.validation_share:
            found[ADJUSTED_NLL] = found[SCALED_NLL] = "evaluate.calibration.enabled=true and data.validation_share above 0"
        return found
