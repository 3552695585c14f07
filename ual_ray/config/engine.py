"""The engines that answer requests, and their servers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from ual_ray.config.names import AUTO, DtypeName, EngineName
from ual_ray.config.registry import REMOTE_ENGINES
from ual_ray.config.section import Section, key


class EndpointConfig(Section):
    """An OpenAI-compatible server, for engine.kind = openai."""

    url: str = key(
        "http://127.0.0.1:8000/v1", affects="scores answers verdicts", description="base URL of the server, ending in /v1"
    )
    api_key_env: str = key("OPENAI_API_KEY", affects="", description="name of the environment variable that holds the API key")
    concurrency: int = key(16, ge=1, affects="", description="maximum concurrent requests per actor")
    requests_per_minute: float | None = key(
        None, gt=0, affects="", description="limit of requests per minute over all actors together; null = unlimited"
    )
    tokens_per_minute: float | None = key(
        None,
        gt=0,
        affects="",
        description="limit of prompt and requested tokens over all actors together, estimated before sending; null = unlimited",
    )
    timeout_seconds: float = key(
        120, gt=0, affects="", description="timeout of one request, in seconds; a request that times out is retried"
    )
    max_retries: int = key(
        4, ge=0, affects="", description="maximum retries after a dropped connection, a timeout, HTTP 429 or 5xx"
    )
    logprobs: bool = key(True, affects="scores answers verdicts", description="whether the server returns log-probabilities")
    top_logprobs: int = key(
        20,
        ge=1,
        affects="scores verdicts",
        description="alternatives per token that are requested with log-probabilities; lowered to what the server allows",
    )
    max_tokens_field: Literal["auto", "max_tokens", "max_completion_tokens"] = key(
        "auto", affects="", description="name of the length limit in a request; auto = the one that the server accepts"
    )
    temperature: float | Literal["as_asked"] | None = key(
        "as_asked",
        affects="scores answers verdicts",
        description="temperature sent: as_asked (0 for scores, elicit.temperature for samples), a number, or null = none",
    )
    chat_template_kwargs: dict[str, Any] = key(
        default_factory=dict,
        affects="scores answers verdicts",
        description="arguments of the server's chat template, such as {enable_thinking: false}",
    )
    reasoning_effort: str | None = key(
        None, affects="scores answers verdicts", description="reasoning effort that is sent, such as low; null = none"
    )
    structured: Literal["none", "choice", "json_schema"] = key(
        "none",
        affects="scores verdicts",
        description="how the server is made to reply with a legal rating or verdict, where replies are sampled: choice "
        "(vLLM), json_schema (response_format), or none",
    )
    extra_body: dict[str, Any] = key(
        default_factory=dict, affects="scores answers verdicts", description="fields added to every request, replacing others"
    )
    extra_headers: dict[str, str] = key(default_factory=dict, affects="", description="HTTP headers added to every request")


class EngineConfig(Section):
    """The pool of language-model actors that scoring and evaluation share."""

    kind: EngineName = key(
        "vllm",
        affects="scores answers verdicts",
        description="vllm (in process), openai (any OpenAI-compatible server), or fake (deterministic, for tests)",
    )
    min_actors: int = key(1, ge=1, affects="", description="minimum size of the autoscaling actor pool")
    max_actors: int = key(2, ge=1, affects="", description="maximum size of the autoscaling actor pool")
    cpus_per_actor: float = key(1, gt=0, affects="", description="CPU cores reserved and used per actor")
    gpus_per_actor: float = key(0, ge=0, affects="", description="GPUs reserved per actor; 0 = CPU inference")
    tensor_parallel_size: int | None = key(
        None,
        ge=1,
        affects="",
        description="GPUs that share each layer (tensor parallelism); null = gpus_per_actor, over "
        "engine.arguments.pipeline_parallel_size where that is set",
    )
    batch_size: int = key(64, ge=1, affects="", description="rows per batch sent to an actor")
    batches_in_flight: int | None = key(
        None,
        ge=1,
        affects="",
        description="batches that a vLLM actor works on at a time, so that the last replies of one do not leave it idle; "
        "null = 2 on GPUs and on several cores, else 1",
    )
    rows_per_block: int | None = key(
        None,
        ge=1,
        affects="",
        description="rows per block, the most that one actor repeats after a crash; null = chosen from the data size",
    )
    max_model_len: int = key(
        2048, ge=16, affects="scores answers verdicts", description="maximum prompt plus completion length, in tokens"
    )
    overlong: Literal["drop", "truncate"] = key(
        "drop",
        affects="scores",
        description="rows over max_model_len: drop (quarantine) or truncate (shorten the longest turns and count them)",
    )
    dtype: DtypeName = key(
        AUTO,
        affects="scores answers",
        description="inference precision for elicitation: bfloat16, float16, float32, or auto = bfloat16; on CPUs the faster "
        "of bfloat16 and float32, measured once per output folder",
    )
    kv_cache_gb: int = key(1, ge=1, affects="", description="KV cache size per CPU actor, in GB")
    hang_seconds: float = key(
        900,
        gt=0,
        affects="",
        description="batch timeout in seconds, times the batches in flight, after which the actor is killed and replaced",
    )
    price_per_million_prompt_tokens: float = key(
        0.0,
        ge=0,
        affects="",
        description="price per million prompt tokens, in any currency, for estimates of cost; 0 = not known",
    )
    price_per_million_generated_tokens: float = key(
        0.0, ge=0, affects="", description="price per million generated tokens, in the same currency; 0 = not known"
    )
    chat_template_kwargs: dict[str, Any] = key(
        default_factory=dict,
        affects="scores answers verdicts",
        description="arguments of the chat template in process, such as {reasoning_effort: low}; enable_thinking is true "
        "where a thinking budget is set, unless it is given here",
    )
    arguments: dict[str, Any] = key(
        default_factory=dict,
        affects="scores answers verdicts",
        description="extra vLLM engine arguments, passed through unchanged",
    )
    endpoint: EndpointConfig = key(
        default_factory=EndpointConfig, affects="", description="OpenAI-compatible server, for engine.kind=openai"
    )

    @property
    def remote(self) -> bool:
        """Whether a server answers, so that the model is not on this machine."""
        return self.kind in REMOTE_ENGINES

    def cost(self, prompt_tokens: int, generated_tokens: int) -> float:
        """Money for so many tokens, by the price options; 0 where no price is given."""
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_generated_tokens)
        return (prompt_tokens * prices[0] + generated_tokens * prices[1]) / 1e6

    @property
    def in_flight(self) -> int:
        """How many batches an actor works on at a time."""
        # An engine of one thread has nothing left for a second batch: bench/elicit_vs_bare_vllm.py measures both.
        several = self.kind == "vllm" and (self.gpus_per_actor or self.cpus_per_actor > 1)
        return self.batches_in_flight or (2 if several else 1)

    @property
    def pipeline_parallel(self) -> Any:
        """How many groups of layers have GPUs of their own; from engine.arguments."""
        return self.arguments.get("pipeline_parallel_size", 1)

    @property
    def tensor_parallel(self) -> int:
        """How many GPUs share each layer."""
        return self.tensor_parallel_size or max(1, int(self.gpus_per_actor) // self.pipeline_parallel)

    @model_validator(mode="after")
    def _fit_gpus(self) -> EngineConfig:
        gpus, stages = self.gpus_per_actor, self.pipeline_parallel
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_actor ({gpus:g}) must be a whole number above 1")
        if self.remote and self.in_flight > 1:
            raise ValueError(
                f"batches_in_flight ({self.in_flight}) must be 1 for engine.kind={self.kind}: how many requests are under way "
                "follows from engine.endpoint.concurrency"
            )
        if self.kind != "vllm":
            return self
        if "tensor_parallel_size" in self.arguments:
            raise ValueError("arguments.tensor_parallel_size must be set as engine.tensor_parallel_size")
        if not isinstance(stages, int) or stages < 1:
            raise ValueError(f"arguments.pipeline_parallel_size ({stages!r}) must be a whole number of 1 or more")
        size = f"tensor_parallel_size ({self.tensor_parallel})" + (
            f" x pipeline_parallel_size ({stages})" if stages > 1 else ""
        )
        if self.tensor_parallel * stages > max(1, gpus):
            raise ValueError(f"{size} must not be above gpus_per_actor ({gpus:g})")
        if self.tensor_parallel * stages < gpus:
            raise ValueError(f"{size} must not be below gpus_per_actor ({gpus:g}), or GPUs would be reserved and idle")
        return self

    @model_validator(mode="after")
    def _order_actors(self) -> EngineConfig:
        if self.min_actors > self.max_actors:
            raise ValueError(f"min_actors ({self.min_actors}) must not be above max_actors ({self.max_actors})")
        return self
