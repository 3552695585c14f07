"""Stage 1: how uncertain the elicitor is."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ual_ray.config.names import AUTO, DEMO, ENSEMBLE, EstimatorName, ReadingName, SelectedName
from ual_ray.config.registry import ESTIMATORS
from ual_ray.config.section import Section, Share, key

# A fifth of them is swapped; with fewer the intervals are too wide to tell anything.
LEAST_CHECKED = 20
# Each attempt at a reply has so many seeds of its own, whatever elicit.samples is.
MOST_SAMPLES = 1 << 16


class ElicitConfig(Section):
    """Stage 1: how uncertain the elicitor is of every pair."""

    model: str = key(
        DEMO,
        affects="",
        names="model",
        description="model that scores the rows: hub name, local directory, 'demo', or the name that the server uses",
    )
    adapter: str | None = key(
        None, affects="", names="directory", description="directory of a LoRA adapter for elicit.model; null = no adapter"
    )
    estimators: tuple[EstimatorName, ...] = key(
        ("verbalized_error", "p_true", "nll"),
        min_length=1,
        affects="scores",
        description=f"uncertainty estimators to compute: {', '.join(ESTIMATORS)}",
    )
    uncertainty: SelectedName = key(
        "verbalized_error",
        affects="uncertainty",
        description="estimator that fills the uncertainty column: one of elicit.estimators, ensemble, or auto = the one that "
        "does best in the self-check",
    )
    ensemble: tuple[EstimatorName, ...] = key(
        (), affects="uncertainty", description="estimators of the ensemble (mean rank); empty = all of elicit.estimators"
    )
    self_check: int = key(
        0,
        ge=0,
        affects="uncertainty",
        description="number of rows scored first, a fifth of them with another row's response, to measure how well every "
        "estimator tells these apart (AUROC); 0 = off, else 20 or more",
    )
    length_residual: bool = key(
        False,
        affects="uncertainty",
        description="remove the part of the uncertainty that the response length explains (linear regression per source)",
    )
    calibrate_with: str | None = key(
        None,
        affects="",
        names="file",
        description="CSV or JSONL file of (id, correct) labels of 30 rows or more; the uncertainty becomes the error rate "
        "fitted on them, cross-fitted; null = not calibrated",
    )
    templates: str | None = key(
        None, affects="", names="file", description="YAML file of prompts; null = ual_ray/elicit/prompts.yaml"
    )
    examples: str | None = key(
        None,
        affects="",
        names="file",
        description="YAML list of rated examples (instruction, response, verbalized_error, ...) that verbalized estimators "
        "show to the elicitor before the pair; null = none",
    )
    scale: Literal["0-9", "1-5", "0-100"] = key(
        "0-9", affects="scores", description="rating scale of the verbalized estimators: 0-9, 1-5 or 0-100"
    )
    mode: ReadingName = key(
        "logprobs",
        affects="scores",
        description="how verbalized estimators and p_true are read: logprobs = expectation over token log-probabilities; "
        "sampled = mean of sampled replies",
    )
    samples: int = key(
        8,
        ge=1,
        le=MOST_SAMPLES,
        affects="scores",
        description="replies per row, for mode=sampled, self_consistency and semantic_entropy",
    )
    temperature: float = key(
        1.0, gt=0, le=2, affects="scores", description="temperature of sampled replies, above 0 and at most 2"
    )
    max_new_tokens: int = key(
        256,
        ge=1,
        affects="scores",
        description="maximum length of a sampled answer (self_consistency, semantic_entropy), in tokens",
    )
    reply_tokens: int = key(
        32, ge=1, affects="scores", description="maximum length of a sampled rating or choice, in tokens, without its thought"
    )
    thinking_tokens: int = key(
        0,
        ge=0,
        affects="scores",
        description="budget of a thought before the answer, in tokens; the score is read behind its end. 0 = do not think",
    )
    min_choice_mass: Share = key(
        0.01,
        ge=0,
        le=1,
        affects="scores",
        description="a row gets no score if the probability of all legal ratings or choices together, in [0, 1], is less "
        "than this",
    )
    store: str | None = key(
        None,
        affects="",
        names="storage",
        description="store of the elicitor's replies that output folders and machines share: a path or a URI (s3://, gs://, "
        "abfs://, hdfs://); null = in the output folder alone",
    )
    retries: int = key(
        2, ge=0, affects="scores", description="retries with a new seed for a sampled reply that cannot be parsed"
    )
    grouping: Literal["auto", "answer", "lexical", "embedding", "nli"] = key(
        "auto",
        affects="scores",
        description="when two sampled answers count as equal: answer = same final answer; lexical = similar words; embedding = "
        "similar embeddings; nli = each entails the other; auto = answer or lexical, chosen per row",
    )
    similarity: float = key(
        0.7,
        gt=0,
        le=1,
        affects="scores",
        description="minimum similarity, above 0 and at most 1, at which two answers count as equal (lexical, embedding)",
    )
    embedding_model: str | None = key(
        None, affects="", names="model", description="encoder for grouping=embedding: hub name or local directory"
    )
    nli_model: str | None = key(
        None,
        affects="",
        names="model",
        description="cross-encoder for grouping=nli: hub name or local directory of a sequence classifier",
    )
    retest_share: Share = key(
        0.05, ge=0, le=1, affects="scores", description="share of rows scored twice, to measure test-retest reliability"
    )
    splits: tuple[Literal["train", "validation", "test"], ...] = key(
        ("train",),
        min_length=1,
        affects="uncertainty",
        description="splits to score: train, validation, test; smoothing needs only train",
    )
    max_quarantine_share: Share = key(
        0.2, ge=0, le=1, affects="", description="abort if more than this share of rows gets no score"
    )

    @model_validator(mode="after")
    def _uncertainty_is_measured(self) -> ElicitConfig:
        if len(set(self.estimators)) < len(self.estimators):
            raise ValueError(f"estimators {list(self.estimators)} names one twice")
        if self.uncertainty not in (*self.estimators, ENSEMBLE, AUTO):
            raise ValueError(
                f"uncertainty '{self.uncertainty}' must be one of estimators {list(self.estimators)}, ensemble or auto"
            )
        if self.uncertainty == AUTO and not self.self_check:
            raise ValueError(
                "uncertainty 'auto' takes the estimator that does best in the self-check; set elicit.self_check=64"
            )
        if 0 < self.self_check < LEAST_CHECKED:
            raise ValueError(f"self_check ({self.self_check}) must be 0 or at least {LEAST_CHECKED} rows")
        if strangers := sorted(set(self.ensemble) - set(self.estimators)):
            raise ValueError(f"ensemble {strangers} must be among estimators {list(self.estimators)}")
        for grouping, model in (("embedding", self.embedding_model), ("nli", self.nli_model)):
            if self.grouping == grouping and model is None:
                raise ValueError(f"grouping '{grouping}' needs elicit.{grouping}_model")
            if model is not None and self.grouping != grouping:
                raise ValueError(
                    f"{grouping}_model is used by grouping '{grouping}' alone; set it, or leave {grouping}_model out"
                )
        return self
