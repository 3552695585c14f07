"""What training keeps of a rendered row: pure, so that the preview shows what training does without loading Ray."""

from __future__ import annotations

from ual_ray.config import TrainConfig
from ual_ray.rendering import IGNORE_INDEX, Rendered


def cut(rendered: Rendered, settings: TrainConfig) -> Rendered | None:
    """Keep the first `train.max_length` tokens of a row; None for a longer one where `train.overlong` drops it."""
    longest = settings.max_length
    if len(rendered.input_ids) <= longest:
        return rendered
    if settings.overlong == "drop":
        return None
    return Rendered(rendered.input_ids[:longest], rendered.labels[:longest])


def trained_tokens(rendered: Rendered) -> int:
    """Count the labels that train something: the first token is never predicted, so a label there trains nothing."""
    return sum(label != IGNORE_INDEX for label in rendered.labels[1:])
