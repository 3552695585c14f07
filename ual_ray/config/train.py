"""The keys of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ual_ray.config.names import LossName, PriorName
from ual_ray.config.registry import LOSSES
from ual_ray.config.section import Section, Share, key


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of the model's own weights."""

    rank: int | None = key(None, ge=1, affects="weights", description="LoRA rank; null = full fine-tuning")
    alpha: float = key(32, gt=0, affects="weights", description="LoRA alpha; the update is scaled by alpha / rank")
    dropout: Share = key(0.0, ge=0, lt=1, affects="weights", description="LoRA dropout")
    target_modules: tuple[str, ...] | None = key(
        None,
        min_length=1,
        affects="weights",
        description="names of the linear layers to adapt; null = all except the output head",
    )
    base_dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        affects="weights",
        description="precision in which the frozen weights are held; adapters are float32; auto = bfloat16 where no bit "
        "changes by that (train.dtype=bfloat16, and a model stored in bfloat16), else float32",
    )
    merge: bool = key(
        True,
        affects="weights",
        description="export a whole model with the adapters merged, which evaluation needs, in addition to the adapters alone",
    )


class TrainConfig(Section):
    """Stage 3: fine-tuning with the per-token smoothed loss under Ray Train and FSDP2."""

    num_workers: int = key(2, ge=1, affects="", description="world size: number of Ray Train workers, one FSDP rank each")
    min_workers: int | None = key(
        None, ge=1, affects="", description="elastic training: minimum number of workers to continue with; null = num_workers"
    )
    cpus_per_worker: float = key(1, gt=0, affects="", description="CPU cores reserved and used per worker")
    gpus_per_worker: float = key(0, ge=0, affects="", description="GPUs reserved per worker; 0 = CPU training with gloo")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        affects="weights card",
        description="precision of forward and backward passes; parameters and optimizer state are float32; auto = the "
        "faster one, measured at start (bfloat16 on GPUs)",
    )
    epochs: int = key(1, ge=1, affects="weights batches card", description="number of passes over the training split")
    max_steps: int | None = key(
        None, ge=1, affects="weights batches card", description="maximum number of optimizer steps; null = no limit"
    )
    global_batch_size: int = key(
        16,
        ge=1,
        affects="weights batches card",
        description="sequences (rows, or packs of rows) per optimizer step, over all workers and micro-batches",
    )
    micro_batch_size: int = key(8, ge=1, affects="", description="sequences per forward and backward pass of one worker")
    mixture: dict[str, Annotated[float, Field(gt=0)]] = key(
        default_factory=dict,
        affects="weights batches card",
        description="weight of every source, such as {math: 2, chat: 1}: its share of the samples that an epoch draws, which "
        "are as many as there are; a row's source is its column `source`, or else its file's name; {} = every row once",
    )
    max_length: int = key(
        1024,
        ge=16,
        affects="weights batches tokens card",
        description="maximum sequence length of a row, or of a pack of rows, in tokens",
    )
    overlong: Literal["truncate", "drop"] = key(
        "truncate", affects="weights tokens", description="rows over max_length: truncate or drop"
    )
    packing: bool = key(
        False,
        affects="weights batches card",
        description="pack several rows into one sequence of max_length, with attention kept within each row, to avoid padding",
    )
    attention: Literal["auto", "sdpa", "varlen"] = key(
        "auto",
        affects="",
        description="attention kernel: sdpa = one call with a mask over the whole pack; varlen = sample by sample, without a "
        "mask; auto = varlen for packs on a CPU, where the model allows it",
    )
    learning_rate: float = key(1e-4, gt=0, affects="weights card", description="peak learning rate (AdamW)")
    warmup_share: Share = key(
        0.1, ge=0, le=1, affects="weights card", description="share of optimizer steps for linear learning rate warm-up"
    )
    schedule: Literal["constant", "linear", "cosine", "wsd"] = key(
        "cosine",
        affects="weights card",
        description="learning rate after the warm-up: constant, linear, cosine, or wsd = at the peak, then a linear decay "
        "over the last decay_share",
    )
    decay_share: Share = key(0.2, ge=0, le=1, affects="weights", description="wsd: share of optimizer steps for the decay")
    min_learning_rate_share: Share = key(
        0.1, ge=0, le=1, affects="weights", description="learning rate at the end of the schedule, as a share of the peak"
    )
    weight_decay: float = key(0.0, ge=0, affects="weights card", description="decoupled weight decay (AdamW)")
    adam_beta1: float = key(0.9, ge=0, lt=1, affects="weights", description="AdamW beta1")
    adam_beta2: float = key(0.95, ge=0, lt=1, affects="weights", description="AdamW beta2")
    max_grad_norm: float = key(1.0, gt=0, affects="weights card", description="gradient clipping threshold (global norm)")
    z_loss: float = key(
        0.0, ge=0, affects="weights card", description="weight of the z-loss, the squared log-partition penalty"
    )
    loss: LossName = key(
        "sft",
        affects="weights card",
        description=f"how much a token counts, from its probability during training: {', '.join(LOSSES)} (sft = all alike)",
    )
    loss_strength: float | None = key(
        None,
        gt=0,
        affects="weights card",
        description="exponent (dft, eaft, prior_leaning) or threshold (profit) of train.loss; null = the default of the loss",
    )
    prior: PriorName = key(
        "uniform",
        affects="weights card",
        description="what labels are smoothed towards: uniform (UAL), unigram (frequencies of the training responses), file, "
        "or base (what the model predicted before training, of which full fine-tuning holds a frozen copy)",
    )
    prior_file: str | None = key(
        None,
        affects="",
        names="file",
        description="for prior=file: a .npy file of one probability per entry of the vocabulary; null with any other prior",
    )
    lora: LoraConfig = key(default_factory=LoraConfig, affects="weights card", description="low-rank adapters (LoRA)")
    reshard_after_forward: bool = key(
        True,
        affects="",
        description="FSDP: free gathered parameters after forward and reduce gradients per micro-batch; false = faster, "
        "but keeps full parameters and gradients in memory",
    )
    activation_checkpointing: Literal[False, True, "selective"] = key(
        False,
        affects="",
        description="recompute activations in backward: true = all within a layer, the least memory, about a third more "
        "operations; selective = all but the results of matrix products and attention, about half the memory, no product twice",
    )
    compile: bool = key(
        False,
        affects="",
        description="torch.compile of the decoder layers, in the first steps, for seconds to minutes; needs a C++ "
        "compiler, on GPUs one for C",
    )
    cpu_offload: bool = key(
        False,
        affects="",
        description="keep sharded parameters, gradients and optimizer state in host memory; training pauses for every "
        "checkpoint",
    )
    host_gib_per_worker: float | None = key(
        None,
        gt=0,
        affects="",
        description="host memory of a node divided by its GPU workers, in GiB: the limit that the dry run checks; null = that "
        "of this machine if it has the GPUs, else not checked",
    )
    replicas: int = key(
        1, ge=1, affects="", description="HSDP: number of replicas of the sharded model, each over num_workers / replicas ranks"
    )
    accelerate_config: str | None = key(
        None,
        affects="",
        names="file",
        description="YAML file of `accelerate config`; its FSDP settings override the sharding keys here",
    )
    validate_every: int | None = key(
        None, ge=1, affects="weights", description="optimizer steps between validations; null = at the end of each epoch"
    )
    continue_from: str | None = key(
        None,
        affects="",
        names="directory",
        description="output folder of another training, whose newest checkpoint gives the first weights and the optimizer's "
        "state; rows, epochs and optimizer settings are those given here",
    )
    validation_tokens: int | None = key(
        1_000_000,
        ge=1,
        affects="weights",
        description="tokens of a validation: a fixed random subset of the validation rows; null = all rows",
    )
    early_stopping: int | None = key(
        None,
        ge=1,
        affects="weights",
        description="early stopping patience: number of validations without a lower loss; null = disabled",
    )
    export: Literal["last", "best"] = key(
        "last",
        affects="weights",
        description="weights to export: those of the last step, or those with the lowest validation loss, "
        "smoothed as in training",
    )
    export_dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        affects="weights",
        description="precision of the exported weights; auto = bfloat16 if evaluate.dtype=bfloat16, which rounds them anyway, "
        "else float32: rounding can exceed the differences between arms",
    )
    checkpoint_every: int | None = key(
        200, ge=1, affects="", description="optimizer steps between checkpoints; null = only at the end"
    )
    keep_checkpoints: int = key(
        1, ge=1, affects="", description="number of recent checkpoints to keep, in addition to the best"
    )
    storage: str | None = key(
        None,
        affects="",
        names="storage",
        description="checkpoint storage: path or URI that every node can write; null = the output folder, "
        "of a URI on a cluster next to it",
    )
    grace_seconds: float = key(30, ge=0, affects="", description="time to save a checkpoint after SIGTERM, in seconds")
    max_dropped_share: Share = key(
        0.05, ge=0, le=1, affects="", description="abort if more than this share of rows cannot be used for training"
    )
    # It affects no weights: a training that ends has skipped the same updates whatever more it might have skipped.
    skip_non_finite: int = key(
        0,
        ge=0,
        affects="",
        description="maximum number of consecutive steps with a non-finite loss or gradient whose update is skipped; one "
        "more ends the training; 0 = the first one ends it",
    )
    max_failures: int = key(
        1, ge=0, affects="", description="maximum worker failures to recover from by resuming from the last checkpoint"
    )
    uncertainty_bins: int = key(
        4,
        ge=0,
        affects="",
        description="number of uncertainty quantile bins for which loss and accuracy are logged separately; 0 = none",
    )
    peak_tflops: float | None = key(
        None,
        gt=0,
        affects="",
        description="peak TFLOP/s of one worker in train.dtype, for MFU; null = look up the GPU; unknown hardware gets no MFU",
    )

    @property
    def needs_validation(self) -> list[str]:
        """Name the settings that need validation rows."""
        needs = {
            "validate_every": self.validate_every,
            "early_stopping": self.early_stopping,
            "export=best": self.export == "best",
        }
        return [f"train.{key}" for key, needed in needs.items() if needed]

    @property
    def holds_copy(self) -> bool:
        """Whether ranks hold a frozen copy of the model: with adapters, the model without them is that before training."""
        return self.prior == "base" and not self.lora.rank

    @model_validator(mode="after")
    def _check_prior(self) -> TrainConfig:
        if (self.prior == "file") != (self.prior_file is not None):
            raise ValueError("prior_file goes with prior=file: set both or neither")
        if self.prior == "base" and self.continue_from:
            raise ValueError(
                "prior=base smooths towards `model`, which with continue_from is not the model before this training; set "
                "another prior, or give the trained model as `model`"
            )
        if self.lora.base_dtype != "auto" and not self.lora.rank:
            raise ValueError(
                f"lora.base_dtype = {self.lora.base_dtype} is for frozen weights, and full fine-tuning has none: set "
                "lora.rank, or lora.base_dtype=auto"
            )
        if self.loss_strength is not None and self.loss == "sft":
            raise ValueError("loss_strength does nothing with loss=sft; set another loss")
        if self.loss == "profit" and self.loss_strength is not None and self.loss_strength >= 1:
            raise ValueError(f"loss_strength = {self.loss_strength} is a probability with loss=profit: above 0 and below 1")
        return self

    @model_validator(mode="after")
    def _check_recomputing(self) -> TrainConfig:
        if self.activation_checkpointing == "selective" and self.compile:
            raise ValueError(
                "activation_checkpointing=selective does nothing with compile=true, which chooses by itself what is "
                "recomputed: set activation_checkpointing to true or false, or compile=false"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} is above num_workers = {self.num_workers}")
        if self.num_workers % self.replicas:
            raise ValueError(f"replicas = {self.replicas} does not divide num_workers = {self.num_workers}")
        if self.replicas > 1 and self.min_workers not in (None, self.num_workers):
            raise ValueError("min_workers below num_workers goes with replicas = 1 only: other counts may not divide")
        return self
