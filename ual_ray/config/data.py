"""The keys of the data: source, columns and splits."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ual_ray.config.names import DEMO, FormatName
from ual_ray.config.registry import FORMATS
from ual_ray.config.section import Section, Share, key


class DataConfig(Section):
    """Where the rows come from and how they are split."""

    path: str = key(
        DEMO,
        affects="",
        names="data",
        description="file or folder (JSONL, JSON, CSV, Parquet, .gz), cloud URI, datasets directory, hub data set, or 'demo'",
    )
    format: FormatName = key(
        "auto", affects="rows", description=f"row format: auto, {', '.join(FORMATS)}; auto = detect from the columns"
    )
    columns: dict[str, str] = key(
        default_factory=dict,
        affects="rows",
        description="map from expected to actual column names, such as {instruction: question, system: system_prompt}",
    )
    thinking: Literal["keep", "drop"] = key(
        "keep",
        affects="rows",
        description="reasoning of replies (reasoning_content, or a leading <think>...</think>): keep = train on it; drop = "
        "leave it out",
    )
    group_by: str | None = key(
        None,
        affects="rows",
        description="column whose equal values are kept in one split, such as original_question; null = each row for itself",
    )
    reference: str | None = key(
        None,
        affects="rows",
        description="column of a reference answer, which verbalized estimators show to the elicitor; null = none",
    )
    subset: str | None = key(
        None, affects="rows", description="hub data set configuration, where it has several, such as main of openai/gsm8k"
    )
    split: str | None = key(
        None,
        affects="rows",
        description="split of a hub data set, saved datasets directory or folder of files named so; null = train",
    )
    revision: str | None = key(None, affects="rows", description="branch, tag or commit of a hub data set; null = latest")
    max_rows: int | None = key(None, ge=1, affects="rows", description="maximum number of rows to read; null = all")
    validation_share: Share = key(
        0.1,
        ge=0,
        lt=1,
        affects="rows",
        description="share of rows held out for validation, in [0, 1), selected by content hash",
    )
    test_share: Share = key(
        0.2,
        ge=0,
        lt=1,
        affects="rows",
        description="share of rows held out for evaluation, in [0, 1), selected by content hash",
    )
    max_bad_share: Share = key(
        0.05, ge=0, le=1, affects="", description="abort if more than this share of rows, in [0, 1], is quarantined as invalid"
    )

    @model_validator(mode="after")
    def _leave_rows_to_train_on(self) -> DataConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1, or no row is left to train on")
        return self

    def split_shares(self) -> dict[str, float]:
        """The share of rows that each split gets, by its name in `columns.SPLITS`."""
        train = 1 - self.validation_share - self.test_share
        return {"train": train, "validation": self.validation_share, "test": self.test_share}
