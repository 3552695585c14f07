"""How a key of the configuration is declared: its default, its description, what it affects, and what it names."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticUndefined

Share = float

# What the value of a key affects: the result that has to be made again when it changes. Cache keys, the cursor of a resumed
# training and the settings of a model card are derived from it.
#   rows: which rows there are; tokens: which of their tokens are trained on; scores: what the elicitor answers;
#   uncertainty: what is made of its answers; batches: which rows a step has; card: what a model card states
Affected = Literal[
    "rows",
    "scores",
    "uncertainty",
    "alphas",
    "tokens",
    "batches",
    "weights",
    "card",
    "answers",
    "calibration",
    "verdicts",
    "win_rates",
]
# What the value of a key names, where that may be on this machine.
Named = Literal["data", "model", "directory", "file", "storage", "output"]


def key(default: Any = PydanticUndefined, *, affects: str, description: str, names: Named | None = None, **options: Any) -> Any:
    """Declare a key of a section.

    affects: members of `Affected`, separated by blanks; "" = the key changes no result, or what it names is hashed instead.
    """
    affected = affects.split()
    assert set(affected) <= set(get_args(Affected)), f"{affected} is not among {get_args(Affected)}"
    meaning: dict[str, Any] = {"affects": affected, **({"names": names} if names else {})}
    return Field(default, description=description, json_schema_extra=meaning, **options)


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant: pydantic takes them as 1 and 0."""
        kinds = {*_kinds(cls.model_fields[str(info.field_name)].annotation)}
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        number = int if int in kinds else float
        if number in kinds and bool not in kinds and any(isinstance(one, bool) for one in values):
            raise PydanticCustomError(f"{number.__name__}_type", "a number")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    yield from (kind for part in parts for kind in _kinds(part)) if parts else (annotation,)
