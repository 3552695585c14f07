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
        description="file or folder (JSONL, JSON, CSV, Parquet, .gz), cloud address, datasets directory, hub name, or 'demo'",
    )
    format: FormatName = Field(
        "auto", description=f"form of the rows: {', '.join(get_args(FormatName))} (auto = by the columns)"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="names of the columns where they differ, such as {instruction: question}"
    )
    subset: str | None = Field(
        None, description="configuration of a hub data set that has several, such as main of openai/gsm8k"
    )
    split: str | None = Field(None, description="split of a hub data set or datasets directory; null = train")
    revision: str | None = Field(None, description="revision (branch, tag or commit) of a hub data set; null = newest")
    max_rows: int | None = Field(None, ge=1, description="read at most this many rows; null = all")
    validation_share: Share = Field(0.1, ge=0, lt=1, description="share of rows, by content hash, kept for validation")
    test_share: Share = Field(0.2, ge=0, lt=1, description="share of rows, by content hash, kept for evaluation")
    max_bad_share: Share = Field(0.05, ge=0, le=1, description="stop when more than this share of rows is quarantined")

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
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; the key itself stays there"
    )
    concurrency: int = Field(16, ge=1, description="requests under way at a time, per actor")
    requests_per_minute: float | None = Field(None, gt=0, description="upper bound over all actors together; null = none")
    timeout_seconds: float = Field(120, gt=0, description="one request takes at most this long before it is tried again")
    max_retries: int = Field(4, ge=0, description="further attempts after a dropped connection, a timeout, 429 or 5xx")
    logprobs: bool = Field(True, description="the server gives log-probabilities; false asks for sampled numbers instead")


class EngineConfig(Section):
    """The pool of language-model actors that scoring and evaluation share."""

    kind: Literal["vllm", "openai", "fake"] = Field(
        "vllm", description="vllm (in the actor), openai (any compatible server), or fake (a stand-in for unit tests)"
    )
    min_actors: int = Field(1, ge=1, description="actors of the autoscaling pool at its smallest")
    max_actors: int = Field(2, ge=1, description="actors of the autoscaling pool at its largest")
    cpus_per_actor: float = Field(1, gt=0, description="CPU cores an actor reserves and computes on")
    gpus_per_actor: float = Field(0, ge=0, description="GPUs an actor reserves; 0 = runs on the CPU")
    tensor_parallel_size: int | None = Field(None, ge=1, description="GPUs one model is split over; null = gpus_per_actor")
    batch_size: int = Field(64, ge=1, description="rows handed to an actor at a time")
    rows_per_block: int | None = Field(
        None, ge=1, description="rows per block: what a crash can lose at most, per actor; null = by the size of the data"
    )
    max_model_len: int = Field(1024, ge=16, description="longest prompt plus answer, in tokens")
    overlong: Literal["drop", "truncate"] = Field(
        "drop", description="what is longer: drop (quarantined) or truncate (its longest turns are cut, counted)"
    )
    dtype: DtypeName = Field("bfloat16", description="arithmetic of scoring")
    kv_cache_gb: int = Field(1, ge=1, description="memory of the key-value cache per CPU actor, in GB")
    hang_seconds: float = Field(900, gt=0, description="an actor that takes longer for a batch is killed and replaced")
    price_per_million_prompt_tokens: float = Field(0.0, ge=0, description="money per million tokens read, for the cost report")
    price_per_million_generated_tokens: float = Field(0.0, ge=0, description="money per million tokens written")
    arguments: dict[str, Any] = Field(default_factory=dict, description="further vLLM engine arguments, passed as they are")
    endpoint: EndpointConfig = Field(default_factory=EndpointConfig, description="the server, for kind = openai")

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

    model: str = Field(DEMO, description="the elicitor: hub name, local directory, 'demo', or the server's name for it")
    adapter: str | None = Field(None, description="directory of a LoRA adapter for the elicitor; null = none")
    estimators: tuple[EstimatorName, ...] = Field(
        ("verbalized", "p_true", "nll"), min_length=1, description=f"any of {', '.join(get_args(EstimatorName))}"
    )
    uncertainty: UncertaintyName = Field(
        "verbalized", description="whose score becomes the uncertainty column: one of estimators, or ensemble"
    )
    ensemble: tuple[EstimatorName, ...] = Field((), description="members of the ensemble (mean rank); empty = all estimators")
    length_residual: bool = Field(False, description="take out of the uncertainty what the response's length explains")
    calibrate_with: str | None = Field(
        None, description="CSV or JSONL of (id, correct): the uncertainty becomes the error rate fitted on these rows"
    )
    templates: str | None = Field(None, description="YAML file of prompts in place of ual_ray/elicit/prompts.yaml")
    scale: Literal["0-9", "1-5", "0-100"] = Field("0-9", description="numbers that verbalized asks for")
    mode: ReadingName = Field(
        "logprobs", description="verbalized and p_true: exact expectation from log-probabilities, or sampled replies"
    )
    samples: int = Field(8, ge=1, description="replies per row of sampled mode, self_consistency and semantic_entropy")
    temperature: float = Field(1.0, gt=0, le=2, description="sampling temperature of these replies")
    max_new_tokens: int = Field(256, ge=1, description="longest sampled answer to the instruction, in tokens")
    retries: int = Field(2, ge=0, description="further attempts, with other seeds, for a reply that cannot be parsed")
    grouping: Literal["auto", "answer", "lexical", "embedding"] = Field(
        "auto", description="when two answers are the same: equal final answers, similar words, similar embeddings; auto by row"
    )
    similarity: float = Field(0.7, gt=0, le=1, description="two texts at least this similar are the same (lexical, embedding)")
    embedding_model: str | None = Field(None, description="encoder for grouping = embedding: hub name or local directory")
    retest_share: Share = Field(0.05, ge=0, le=1, description="share of rows scored twice, to measure the score's own noise")
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        ("train",), min_length=1, description="splits to score; smoothing needs train only"
    )
    max_quarantine_share: Share = Field(0.2, ge=0, le=1, description="stop when more than this share of rows gets no score")

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

    map: MapName = Field("mean_matched", description=f"one of {', '.join(get_args(MapName))}")
    base: BaseMapName = Field("mean_matched", description="the map whose alphas the controls shuffled and inverted hand out")
    alpha_mean: float = Field(0.1, ge=0, lt=1, description="mean alpha (mean_matched), or every alpha (constant)")
    alpha_cap: float = Field(0.4, ge=0, lt=1, description="largest alpha of mean_matched")
    alpha_min: float = Field(0.0, ge=0, lt=1, description="alpha of the least uncertain row (linear, minmax, rank)")
    alpha_max: float = Field(0.2, ge=0, lt=1, description="alpha of the most uncertain row (linear, minmax, rank)")
    missing: Literal["impute", "default", "exclude"] = Field(
        "impute", description="rows without a score: impute (mean uncertainty), default (missing_alpha), or exclude"
    )
    missing_alpha: float = Field(0.0, ge=0, lt=1, description="alpha of rows without a score under missing: default")

    @model_validator(mode="after")
    def _order_alphas(self) -> SmoothConfig:
        if self.alpha_min > self.alpha_max:
            raise ValueError(f"alpha_min ({self.alpha_min}) must not be above alpha_max ({self.alpha_max})")
        if self.alpha_mean > self.alpha_cap:
            raise ValueError(f"alpha_mean ({self.alpha_mean}) must not be above alpha_cap ({self.alpha_cap})")
        return self


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of the model's own weights; they are merged into them on export."""

    rank: int | None = Field(None, ge=1, description="rank of the adapters; null = train all weights")
    alpha: float = Field(32, gt=0, description="the adapters' product is scaled by alpha / rank")
    dropout: Share = Field(0.0, ge=0, lt=1, description="dropout before the adapters")
    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the linear layers that get one; null = all but the head"
    )


class TrainConfig(Section):
    """Stage 3: fine-tuning with the per-token smoothed loss under Ray Train and FSDP2."""

    num_workers: int = Field(2, ge=1, description="world size: Ray Train workers, one FSDP rank each")
    min_workers: int | None = Field(
        None, ge=1, description="elastic: go on with as few workers as this while others are missing; null = num_workers"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores a worker reserves and computes on")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs a worker reserves; 0 = trains on the CPU over gloo")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="arithmetic of forward and backward, weights and optimizer stay float32; auto = the faster one, measured "
        "when training starts (bfloat16 on GPUs)",
    )
    epochs: int = Field(1, ge=1, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps; null = all epochs")
    global_batch_size: int = Field(
        16, ge=1, description="sequences per optimizer step (rows, or packs of them), over all workers and micro-batches"
    )
    micro_batch_size: int = Field(8, ge=1, description="sequences per forward and backward pass of one worker")
    max_length: int = Field(1024, ge=16, description="longest sequence in tokens: of a row, or of a pack of rows")
    overlong: Literal["truncate", "drop"] = Field("truncate", description="what happens to the end of a longer row, or to it")
    packing: bool = Field(
        False, description="fill sequences of max_length with several rows that do not see each other, in place of padding"
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    warmup_share: Share = Field(0.1, ge=0, le=1, description="share of the steps that warm the learning rate up")
    min_learning_rate_share: Share = Field(0.1, ge=0, le=1, description="learning rate at the end of the cosine / peak")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the gradient mean")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the squared-gradient mean")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-partition penalty")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="low-rank adapters")
    reshard_after_forward: bool = Field(
        True,
        description="free a layer's gathered weights until backward, and exchange gradients after every micro-batch; "
        "false is faster, and holds both whole",
    )
    activation_checkpointing: bool = Field(
        False, description="compute each layer's activations again in backward: less memory, a third more time"
    )
    cpu_offload: bool = Field(False, description="keep sharded weights, gradients and optimizer in host memory")
    replicas: int = Field(1, ge=1, description="HSDP: copies of the sharded model, each over num_workers / replicas ranks")
    accelerate_config: str | None = Field(
        None, description="YAML of `accelerate config` whose FSDP settings replace the sharding keys here"
    )
    validate_every: int | None = Field(None, ge=1, description="steps between validations; null = at the end of each epoch")
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many validations without a lower NLL; null = never"
    )
    export: Literal["last", "best"] = Field("last", description="weights that leave: of the last step, or of the lowest NLL")
    checkpoint_every: int | None = Field(200, ge=1, description="steps between checkpoints; null = at the end only")
    keep_checkpoints: int = Field(1, ge=1, description="how many of the newest checkpoints stay, beside the best")
    storage: str | None = Field(
        None, description="where checkpoints go: a path or address that every node can write; null = the output folder"
    )
    grace_seconds: float = Field(30, ge=0, description="after SIGTERM, the time to save a checkpoint in before the end")
    max_dropped_share: Share = Field(0.05, ge=0, le=1, description="stop when more rows than this cannot be trained on")
    max_failures: int = Field(1, ge=0, description="worker failures survived by resuming from the last checkpoint")
    uncertainty_bins: int = Field(
        4, ge=0, description="loss and accuracy are also logged by this many bins of uncertainty, of equal numbers of rows"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="a worker's peak in dtype, for MFU; null = that of a known GPU, and no MFU elsewhere"
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

    kind: BenchmarkName = Field("held_out", description=f"one of {', '.join(get_args(BenchmarkName))}")
    path: str | None = Field(
        None,
        description="file, folder, cloud address or hub name of the questions; null = the test split of the run",
    )
    columns: dict[str, str] = Field(default_factory=dict, description="names of the columns where they differ")
    subset: str | None = Field(None, description="configuration of a hub data set that has several")
    split: str | None = Field(None, description="split of a hub data set or datasets directory; null = test")
    revision: str | None = Field(None, description="revision (branch, tag or commit) of a hub data set; null = newest")
    max_rows: int | None = Field(None, ge=1, description="ask at most this many questions; null = all")
    shots: Literal[0, 5] = Field(0, description="gsm8k: worked examples before the question; 0 = the chat template alone")
    max_new_tokens: int = Field(160, ge=1, description="longest greedy answer, in tokens")

    def data(self) -> DataConfig | None:
        """Spell where the questions are as a data section, for the readers; None for those of the run's own test split."""
        if self.path is None:
            return None
        return DataConfig(path=self.path, subset=self.subset, split=self.split, revision=self.revision)


class CalibrationConfig(Section):
    """How well probabilities say how often a model is right, before and after temperature scaling."""

    enabled: bool = Field(True, description="measure calibration of every model")
    max_tokens: int = Field(20_000, ge=1, description="response tokens looked at, of the validation and of the test split each")
    bins: int = Field(15, ge=2, description="bins of the expected calibration error")


class ClusteringConfig(Section):
    """How the hidden states of frequent tokens lie before and after training."""

    tokens: int = Field(10, ge=0, description="classes: the most frequent response tokens of the test split; 0 = no clustering")
    positions: int = Field(100, ge=2, description="positions looked at per class, at most")


class JudgeConfig(Section):
    """A model that compares two answers; it runs on the engine of scoring."""

    model: str | None = Field(None, description="the judge: hub name, directory, 'demo', or the server's name; null = none")
    against: str = Field(
        "sft", description="whose answers the others are compared with: an arm, base, or reference (the file's)"
    )
    mode: ReadingName = Field(
        "logprobs", description="preference from the log-probabilities of the two verdicts, or from one sampled verdict"
    )
    trial_rows: int = Field(10, ge=1, description="pairs judged first, to see whether the verdicts can be read")
    min_parse_share: Share = Field(0.5, ge=0, le=1, description="stop when fewer verdicts of the trial than this can be read")
    templates: str | None = Field(None, description="YAML file of prompts in place of ual_ray/judge/prompts.yaml")
    dtype: DtypeName = Field("bfloat16", description="arithmetic of the judge")


def _default_benchmarks() -> dict[str, BenchmarkConfig]:
    return {"held_out": BenchmarkConfig(kind="held_out"), "gsm8k": BenchmarkConfig(kind="gsm8k")}


class EvaluateConfig(Section):
    """Stage 4: what every model is measured on."""

    benchmarks: dict[str, BenchmarkConfig] = Field(
        default_factory=_default_benchmarks, min_length=1, description="by name; a file's benchmarks replace these"
    )
    dtype: DtypeName = Field(
        "float32",
        description="arithmetic of evaluation, apart from engine.dtype: arms differ by less than bfloat16 rounds",
    )
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig, description="calibration")
    clustering: ClusteringConfig = Field(default_factory=ClusteringConfig, description="token clustering")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples of every confidence interval and comparison")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the confidence intervals, and of better and worse")


class TrackingConfig(Section):
    """Where MLflow keeps runs, models, tables and plots."""

    uri: str | None = Field(None, description="MLflow tracking URI; null = an SQLite store in the output folder")
    experiment: str = Field("ual_ray", description="MLflow experiment")
    register_as: str = Field("ual", description="arm ARM is registered as the model '<register_as>-ARM'")
    retry_seconds: float = Field(5, gt=0, description="a server that is away is tried again after this, later less often")
    catch_up_seconds: float = Field(60, ge=0, description="how long a command waits at its end for a server that is away")


class RuntimeConfig(Section):
    """The Ray cluster."""

    address: str | None = Field(None, description="Ray address ('auto', 'ray://host:10001'); null = a local cluster")
    check_memory: bool = Field(True, description="refuse to start what cannot fit into this machine's free memory")


def _default_arms() -> dict[str, SmoothConfig]:
    return {"sft": SmoothConfig(map="none"), "ual": SmoothConfig(map="mean_matched")}


class Config(Section):
    """Everything `ual run` needs; its defaults are the demo."""

    data: DataConfig = Field(default_factory=DataConfig, description="rows")
    model: str = Field(DEMO, description="the model to fine-tune: hub name, local directory, or 'demo'")
    trust_remote_code: bool = Field(False, description="run code shipped with a model; leave off unless you read it")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="language-model actors")
    elicit: ElicitConfig = Field(default_factory=ElicitConfig, description="stage 1, elicit")
    arms: dict[str, SmoothConfig] = Field(
        default_factory=_default_arms,
        min_length=1,
        description="stage 2, smooth: one map per arm; a file's arms replace these",
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="stage 3, train")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="stage 4, evaluate")
    judge: JudgeConfig = Field(default_factory=JudgeConfig, description="pairwise judging")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="stage 5, report")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="the Ray cluster")
    output: str = Field("runs/demo", description="the folder everything of a run is written to")
    seed: int = Field(0, ge=0, description="seed of shuffling, of the shuffled control and of the optimizer's data order")

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
