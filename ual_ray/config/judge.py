"""Stage 4: pairwise judging."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ual_ray.config.names import SFT, DtypeName, ReadingName
from ual_ray.config.section import Section, Share, key


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
        "bfloat16",
        affects="verdicts",
        description="inference precision of the judge: bfloat16, float16, float32, or auto = chosen by vLLM",
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
