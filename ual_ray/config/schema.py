"""The configuration: one section per stage, every default of the project, and nothing else."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEMO = "demo"
# What arms are compared with besides each other: the model before training, and the answers that a file brings along.
BASE = "base"
REFERENCE_ANSWERS = "reference"

EstimatorName = Literal["verbalized", "p_true", "nll", "nll_sum", "self_consistency", "semantic_entropy"]
ENSEMBLE = "ensemble"
UncertaintyName = Literal[EstimatorName, "ensemble"]
FormatName = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "gsm8k", "metamath", "alpaca_eval"]
MapName = Literal["linear", "minmax", "mean_matched", "rank", "none", "constant", "shuffled", "inverted"]
BenchmarkName = Literal["held_out", "gsm8k", "math", "multiple_choice", "open_ended"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
ReadingName = Literal["logprobs", "sampled"]
BaseMapName = Literal["linear", "minmax", "mean_matched", "rank"]
Share = float


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the rows come from and how they are split."""

    path: str = Field(
        DEMO,
        description="file or folder (JSONL, JSON, CSV, Parquet, .gz), cloud URI, datasets directory, hub data set, or 'demo'",
    )
    format: FormatName = Field(
        "auto", description=f"row format: {', '.join(get_args(FormatName))}; auto = detect from the columns"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="map from expected to actual column names, such as {instruction: question}"
    )
    subset: str | None = Field(
        None, description="hub data set configuration, where it has several, such as main of openai/gsm8k"
    )
    split: str | None = Field(None, description="split of a hub data set or saved datasets directory; null = train")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set; null = latest")
    max_rows: int | None = Field(None, ge=1, description="maximum number of rows to read; null = all")
    validation_share: Share = Field(
        0.1, ge=0, lt=1, description="share of rows held out for validation, selected by content hash"
    )
    test_share: Share = Field(0.2, ge=0, lt=1, description="share of rows held out for evaluation, selected by content hash")
    max_bad_share: Share = Field(
        0.05, ge=0, le=1, description="abort if more than this share of rows is quarantined as invalid"
    )

    @model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> DataConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1, or no row is left to train on")
        return self

    def split_shares(self) -> dict[str, float]:
        """The share of rows that each split gets, by its name in `records.SPLITS`."""
        train = 1 - self.validation_share - self.test_share
        return {"train": train, "validation": self.validation_share, "test": self.test_share}


class EndpointConfig(Section):
    """An OpenAI-compatible server, for engine.kind = openai."""

    url: str = Field("http://127.0.0.1:8000/v1", description="base URL of the server, ending in /v1")
    api_key_env: str = Field("OPENAI_API_KEY", description="name of the environment variable that holds the API key")
    concurrency: int = Field(16, ge=1, description="maximum concurrent requests per actor")
    requests_per_minute: float | None = Field(None, gt=0, description="rate limit over all actors together; null = unlimited")
    timeout_seconds: float = Field(
        120, gt=0, description="timeout of one request, in seconds; a request that times out is retried"
    )
    max_retries: int = Field(4, ge=0, description="maximum retries after a dropped connection, a timeout, HTTP 429 or 5xx")
    logprobs: bool = Field(True, description="whether the server returns log-probabilities")


class EngineConfig(Section):
    """The pool of language-model actors that scoring and evaluation share."""

    kind: Literal["vllm", "openai", "fake"] = Field(
        "vllm", description="vllm (in process), openai (any OpenAI-compatible server), or fake (deterministic, for tests)"
    )
    min_actors: int = Field(1, ge=1, description="minimum size of the autoscaling actor pool")
    max_actors: int = Field(2, ge=1, description="maximum size of the autoscaling actor pool")
    cpus_per_actor: float = Field(1, gt=0, description="CPU cores reserved and used per actor")
    gpus_per_actor: float = Field(0, ge=0, description="GPUs reserved per actor; 0 = CPU inference")
    tensor_parallel_size: int | None = Field(
        None, ge=1, description="GPUs per model replica (tensor parallelism); null = gpus_per_actor"
    )
    batch_size: int = Field(64, ge=1, description="rows per batch sent to an actor")
    rows_per_block: int | None = Field(
        None,
        ge=1,
        description="rows per block, the most that one actor repeats after a crash; null = chosen from the data size",
    )
    max_model_len: int = Field(1024, ge=16, description="maximum prompt plus completion length, in tokens")
    overlong: Literal["drop", "truncate"] = Field(
        "drop", description="rows over max_model_len: drop (quarantine) or truncate (shorten the longest turns and count them)"
    )
    dtype: DtypeName = Field("bfloat16", description="inference precision for elicitation")
    kv_cache_gb: int = Field(1, ge=1, description="KV cache size per CPU actor, in GB")
    hang_seconds: float = Field(900, gt=0, description="batch timeout in seconds, after which the actor is killed and replaced")
    price_per_million_prompt_tokens: float = Field(
        0.0, ge=0, description="price per million prompt tokens, for the cost report"
    )
    price_per_million_generated_tokens: float = Field(
        0.0, ge=0, description="price per million generated tokens, for the cost report"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="extra vLLM engine arguments, passed through unchanged")
    endpoint: EndpointConfig = Field(
        default_factory=EndpointConfig, description="OpenAI-compatible server, for engine.kind=openai"
    )

    def cost(self, prompt_tokens: int, generated_tokens: int) -> float:
        """Money for so many tokens, by the price options; 0 where no price is given."""
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_generated_tokens)
        return (prompt_tokens * prices[0] + generated_tokens * prices[1]) / 1e6

    @model_validator(mode="after")
    def _order_actors(self) -> EngineConfig:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors ({self.min_actors}) must not be above max_actors ({self.max_actors})")
        return self


class ElicitConfig(Section):
    """Stage 1: how uncertain the elicitor is of every pair."""

    model: str = Field(
        DEMO, description="model that scores the rows: hub name, local directory, 'demo', or the name that the server uses"
    )
    adapter: str | None = Field(None, description="directory of a LoRA adapter for elicit.model; null = no adapter")
    estimators: tuple[EstimatorName, ...] = Field(
        ("verbalized", "p_true", "nll"),
        min_length=1,
        description=f"uncertainty estimators to compute: {', '.join(get_args(EstimatorName))}",
    )
    uncertainty: UncertaintyName = Field(
        "verbalized", description="estimator that fills the uncertainty column: one of elicit.estimators, or ensemble"
    )
    ensemble: tuple[EstimatorName, ...] = Field(
        (), description="estimators of the ensemble (mean rank); empty = all of elicit.estimators"
    )
    length_residual: bool = Field(
        False, description="remove the part of the uncertainty that the response length explains (linear regression)"
    )
    calibrate_with: str | None = Field(
        None, description="CSV or JSONL file of (id, correct) labels; the uncertainty becomes the error rate fitted on them"
    )
    templates: str | None = Field(None, description="YAML file of prompts that replaces ual_ray/elicit/prompts.yaml")
    scale: Literal["0-9", "1-5", "0-100"] = Field("0-9", description="rating scale of the verbalized estimator")
    mode: ReadingName = Field(
        "logprobs", description="verbalized and p_true: expectation over token log-probabilities, or mean of sampled replies"
    )
    samples: int = Field(8, ge=1, description="replies per row, for mode=sampled, self_consistency and semantic_entropy")
    temperature: float = Field(1.0, gt=0, le=2, description="sampling temperature of these replies")
    max_new_tokens: int = Field(256, ge=1, description="maximum length of a sampled answer, in tokens")
    retries: int = Field(2, ge=0, description="retries with a new seed for a reply that cannot be parsed")
    grouping: Literal["auto", "answer", "lexical", "embedding"] = Field(
        "auto",
        description="when two answers count as equal: same final answer, similar words, or similar embeddings; auto = "
        "chosen per row",
    )
    similarity: float = Field(
        0.7, gt=0, le=1, description="minimum similarity at which two answers count as equal (lexical, embedding)"
    )
    embedding_model: str | None = Field(None, description="encoder for grouping=embedding: hub name or local directory")
    retest_share: Share = Field(0.05, ge=0, le=1, description="share of rows scored twice, to measure test-retest reliability")
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        ("train",), min_length=1, description="splits to score; smoothing needs only train"
    )
    max_quarantine_share: Share = Field(0.2, ge=0, le=1, description="abort if more than this share of rows gets no score")

    @model_validator(mode="after")
    def _uncertainty_is_measured(self) -> ElicitConfig:
        if len(set(self.estimators)) < len(self.estimators):
            raise ValueError(f"estimators {list(self.estimators)} names one twice")
        if self.uncertainty != ENSEMBLE and self.uncertainty not in self.estimators:
            raise ValueError(f"uncertainty '{self.uncertainty}' must be one of estimators {list(self.estimators)}, or ensemble")
        if strangers := sorted(set(self.ensemble) - set(self.estimators)):
            raise ValueError(f"ensemble {strangers} must be among estimators {list(self.estimators)}")
        if self.grouping == "embedding" and self.embedding_model is None:
            raise ValueError("grouping 'embedding' needs elicit.embedding_model")
        if "semantic_entropy" in self.estimators and self.samples < 2:
            raise ValueError("semantic_entropy needs at least two samples to compare; raise samples")
        if self.embedding_model is not None and self.grouping != "embedding":
            raise ValueError("embedding_model is used by grouping 'embedding' alone; set it, or leave embedding_model out")
        return self


class SmoothConfig(Section):
    """Stage 2, one per arm: the map from uncertainty to the smoothing value alpha of every row."""

    map: MapName = Field("mean_matched", description=f"map from uncertainty to alpha: {', '.join(get_args(MapName))}")
    base: BaseMapName = Field("mean_matched", description="map whose alphas the control maps (shuffled, inverted) permute")
    alpha_mean: float = Field(0.1, ge=0, lt=1, description="mean alpha (mean_matched), or the alpha of every row (constant)")
    alpha_cap: float = Field(0.4, ge=0, lt=1, description="maximum alpha (mean_matched)")
    alpha_min: float = Field(0.0, ge=0, lt=1, description="alpha of the least uncertain row (linear, minmax, rank)")
    alpha_max: float = Field(0.2, ge=0, lt=1, description="alpha of the most uncertain row (linear, minmax, rank)")
    missing: Literal["impute", "default", "exclude"] = Field(
        "impute", description="rows without a score: impute (mean uncertainty), default (missing_alpha), or exclude"
    )
    missing_alpha: float = Field(0.0, ge=0, lt=1, description="alpha of rows without a score, for missing=default")

    @model_validator(mode="after")
    def _order_alphas(self) -> SmoothConfig:
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min ({self.alpha_min}) must not be above alpha_max ({self.alpha_max})")
        if self.alpha_mean > self.alpha_cap:
            raise ValueError(f"alpha_mean ({self.alpha_mean}) must not be above alpha_cap ({self.alpha_cap})")
        return self


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of the model's own weights; they are merged into them on export."""

    rank: int | None = Field(None, ge=1, description="LoRA rank; null = full fine-tuning")
    alpha: float = Field(32, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    dropout: Share = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the linear layers to adapt; null = all except the output head"
    )


class TrainConfig(Section):
    """Stage 3: fine-tuning with the per-token smoothed loss under Ray Train and FSDP2."""

    num_workers: int = Field(2, ge=1, description="world size: number of Ray Train workers, one FSDP rank each")
    min_workers: int | None = Field(
        None, ge=1, description="elastic training: minimum number of workers to continue with; null = num_workers"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores reserved and used per worker")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs reserved per worker; 0 = CPU training with gloo")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of forward and backward passes; parameters and optimizer state are float32; auto = the "
        "faster one, measured at start (bfloat16 on GPUs)",
    )
    epochs: int = Field(1, ge=1, description="number of passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="maximum number of optimizer steps; null = no limit")
    global_batch_size: int = Field(
        16, ge=1, description="sequences (rows, or packs of rows) per optimizer step, over all workers and micro-batches"
    )
    micro_batch_size: int = Field(8, ge=1, description="sequences per forward and backward pass of one worker")
    max_length: int = Field(1024, ge=16, description="maximum sequence length of a row, or of a pack of rows, in tokens")
    overlong: Literal["truncate", "drop"] = Field("truncate", description="rows over max_length: truncate or drop")
    packing: bool = Field(
        False,
        description="pack several rows into one sequence of max_length, with attention kept within each row, to avoid padding",
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate (AdamW)")
    warmup_share: Share = Field(0.1, ge=0, le=1, description="share of optimizer steps for linear learning rate warm-up")
    min_learning_rate_share: Share = Field(
        0.1, ge=0, le=1, description="final learning rate of the cosine schedule, as a share of the peak"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (AdamW)")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta2")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping threshold (global norm)")
    z_loss: float = Field(0.0, ge=0, description="weight of the z-loss, the squared log-partition penalty")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="low-rank adapters (LoRA)")
    reshard_after_forward: bool = Field(
        True,
        description="FSDP: free gathered parameters after forward and reduce gradients per micro-batch; false = faster, "
        "but keeps full parameters and gradients in memory",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in backward: less memory, about a third more time"
    )
    cpu_offload: bool = Field(False, description="keep sharded parameters, gradients and optimizer state in host memory")
    replicas: int = Field(
        1, ge=1, description="HSDP: number of replicas of the sharded model, each over num_workers / replicas ranks"
    )
    accelerate_config: str | None = Field(
        None, description="YAML file of `accelerate config`; its FSDP settings override the sharding keys here"
    )
    validate_every: int | None = Field(
        None, ge=1, description="optimizer steps between validations; null = at the end of each epoch"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="early stopping patience: number of validations without a lower NLL; null = disabled"
    )
    export: Literal["last", "best"] = Field(
        "last", description="weights to export: those of the last step, or those with the lowest validation NLL"
    )
    checkpoint_every: int | None = Field(200, ge=1, description="optimizer steps between checkpoints; null = only at the end")
    keep_checkpoints: int = Field(1, ge=1, description="number of recent checkpoints to keep, in addition to the best")
    storage: str | None = Field(
        None, description="checkpoint storage: path or URI that every node can write; null = the output folder"
    )
    grace_seconds: float = Field(30, ge=0, description="time to save a checkpoint after SIGTERM, in seconds")
    max_dropped_share: Share = Field(
        0.05, ge=0, le=1, description="abort if more than this share of rows cannot be used for training"
    )
    max_failures: int = Field(
        1, ge=0, description="maximum worker failures to recover from by resuming from the last checkpoint"
    )
    uncertainty_bins: int = Field(
        4, ge=0, description="number of uncertainty quantile bins for which loss and accuracy are logged separately; 0 = none"
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="peak TFLOP/s of one worker in train.dtype, for MFU; null = look up the GPU; unknown hardware gets no MFU",
    )

    @model_validator(mode="after")
    def _check_workers(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} is above num_workers = {self.num_workers}")
        if self.num_workers % self.replicas:
            raise ValueError(f"replicas = {self.replicas} does not divide num_workers = {self.num_workers}")
        if self.replicas > 1 and self.min_workers not in (None, self.num_workers):
            raise ValueError("min_workers below num_workers goes with replicas = 1 only: other counts may not divide")
        return self


class BenchmarkConfig(Section):
    """One benchmark: where its questions come from and how they are asked."""

    kind: BenchmarkName = Field("held_out", description=f"benchmark type: {', '.join(get_args(BenchmarkName))}")
    path: str | None = Field(
        None,
        description="questions: file, folder, cloud URI or hub data set; null = the test split of the run",
    )
    columns: dict[str, str] = Field(default_factory=dict, description="map from expected to actual column names")
    subset: str | None = Field(None, description="hub data set configuration, where it has several")
    split: str | None = Field(None, description="split of a hub data set or saved datasets directory; null = test")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set; null = latest")
    max_rows: int | None = Field(None, ge=1, description="maximum number of questions; null = all")
    shots: Literal[0, 5] = Field(0, description="gsm8k: number of few-shot examples; 0 = zero-shot with the chat template")
    max_new_tokens: int = Field(160, ge=1, description="maximum length of an answer (greedy decoding), in tokens")

    def data(self) -> DataConfig | None:
        """Spell where the questions are as a data section, for the readers; None for those of the run's own test split."""
        if self.path is None:
            return None
        return DataConfig(path=self.path, subset=self.subset, split=self.split, revision=self.revision)


class CalibrationConfig(Section):
    """How well probabilities match how often a model is right, before and after temperature scaling."""

    enabled: bool = Field(True, description="measure the calibration of every model")
    max_tokens: int = Field(
        20_000, ge=1, description="maximum number of response tokens to probe, per split (validation, test)"
    )
    bins: int = Field(15, ge=2, description="number of bins of the expected calibration error")


class ClusteringConfig(Section):
    """How the hidden states of frequent tokens lie before and after training."""

    tokens: int = Field(
        10, ge=0, description="number of token classes: the most frequent response tokens of the test split; 0 = disabled"
    )
    positions: int = Field(100, ge=2, description="maximum number of positions sampled per class")


class JudgeConfig(Section):
    """A model that compares two answers; it runs on the engine of scoring."""

    model: str | None = Field(
        None, description="judge model: hub name, local directory, 'demo', or the name that the server uses; null = no judge"
    )
    against: str = Field(
        "sft", description="reference answers of every comparison: an arm, base, or reference (those in the data file)"
    )
    mode: ReadingName = Field(
        "logprobs", description="preference from the log-probabilities of both verdicts, or one sampled verdict"
    )
    trial_rows: int = Field(10, ge=1, description="number of pairs judged first, to test whether verdicts can be parsed")
    min_parse_share: Share = Field(0.5, ge=0, le=1, description="abort if a smaller share of trial verdicts can be parsed")
    templates: str | None = Field(None, description="YAML file of prompts that replaces ual_ray/judge/prompts.yaml")
    dtype: DtypeName = Field("bfloat16", description="inference precision of the judge")


def _default_benchmarks() -> dict[str, BenchmarkConfig]:
    return {"held_out": BenchmarkConfig(kind="held_out"), "gsm8k": BenchmarkConfig(kind="gsm8k")}


class EvaluateConfig(Section):
    """Stage 4: what every model is measured on."""

    benchmarks: dict[str, BenchmarkConfig] = Field(
        default_factory=_default_benchmarks,
        min_length=1,
        description="benchmarks by name; benchmarks of a configuration file replace these",
    )
    dtype: DtypeName = Field(
        "float32",
        description="inference precision for evaluation; bfloat16 rounding can exceed the differences between arms",
    )
    calibration: CalibrationConfig = Field(
        default_factory=CalibrationConfig, description="calibration before and after temperature scaling"
    )
    clustering: ClusteringConfig = Field(
        default_factory=ClusteringConfig, description="clustering of the hidden states of frequent tokens"
    )
    resamples: int = Field(2000, ge=100, description="bootstrap resamples per confidence interval and comparison")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence level of intervals and verdicts")


class TrackingConfig(Section):
    """Where MLflow keeps runs, models, tables and plots."""

    uri: str | None = Field(None, description="MLflow tracking URI; null = SQLite store in the output folder")
    experiment: str = Field("ual_ray", description="MLflow experiment name")
    register_as: str = Field("ual", description="prefix of registered model names: '<register_as>-<arm>'")
    retry_seconds: float = Field(
        5, gt=0, description="initial delay before retrying an unreachable MLflow server, in seconds; grows with every retry"
    )
    catch_up_seconds: float = Field(
        60, ge=0, description="maximum time to wait for an unreachable MLflow server when a command ends, in seconds"
    )


class RuntimeConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(None, description="Ray address ('auto', 'ray://host:10001'); null = start a local cluster")
    check_memory: bool = Field(True, description="abort before a stage that cannot fit into this machine's free memory")


def _default_arms() -> dict[str, SmoothConfig]:
    return {"sft": SmoothConfig(map="none"), "ual": SmoothConfig(map="mean_matched")}


class Config(Section):
    """Everything `ual run` needs; its defaults are the demo."""

    data: DataConfig = Field(default_factory=DataConfig, description="training and evaluation rows")
    model: str = Field(DEMO, description="model to fine-tune: hub name, local directory, or 'demo'")
    trust_remote_code: bool = Field(
        False, description="run Python code from model repositories; enable only for code you have reviewed"
    )
    engine: EngineConfig = Field(
        default_factory=EngineConfig, description="inference engine of elicitation, evaluation and judging"
    )
    elicit: ElicitConfig = Field(default_factory=ElicitConfig, description="stage 1: uncertainty scores")
    arms: dict[str, SmoothConfig] = Field(
        default_factory=_default_arms,
        min_length=1,
        description="stage 2: label smoothing, one map from uncertainty to alpha per arm; arms of a configuration file "
        "replace these",
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="stage 3: fine-tuning")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="stage 4: evaluation")
    judge: JudgeConfig = Field(
        default_factory=JudgeConfig, description="stage 4: pairwise comparison of open-ended answers by a judge model"
    )
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="stage 5: MLflow tracking")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Ray cluster")
    output: str = Field("runs/demo", description="output folder of the run")
    seed: int = Field(
        0, ge=0, description="random seed of data order, sampling, bootstrap, adapter initialization and the shuffled control"
    )

    @model_validator(mode="after")
    def _endpoint_can_measure(self) -> Config:
        if self.engine.kind != "openai":
            return self
        if impossible := sorted({"nll", "nll_sum"} & set(self.elicit.estimators)):
            raise ValueError(
                f"elicit.estimators {impossible}: a server does not give the likelihood of a text; use engine.kind=vllm"
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
            if not _is_file_name(arm) or arm in (BASE, REFERENCE_ANSWERS):
                raise ValueError(
                    f"arm '{arm}' must be letters, digits, '-' or '_', and neither 'base' (the untrained model) nor 'reference'"
                )
        for name in self.evaluate.benchmarks:
            if not _is_file_name(name):
                raise ValueError(f"evaluate.benchmarks: '{name}' must be letters, digits, '-' or '_'")
        return self

    @model_validator(mode="after")
    def _judge_has_a_side(self) -> Config:
        sides = [*self.arms, BASE, REFERENCE_ANSWERS]
        if self.judge.model is not None and self.judge.against not in sides:
            raise ValueError(f"judge.against '{self.judge.against}' must be one of {', '.join(sides)}")
        return self


def _is_file_name(name: str) -> bool:
    return name.replace("-", "").replace("_", "").isalnum()
