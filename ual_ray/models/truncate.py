"""Truncation of rendered rows to train.max_length. Pure, so that the preview shows it without loading Ray."""

from ual_ray.columns import Message, Messages
from ual_ray.config import TrainConfig
from ual_ray.models.chat import IGNORE_INDEX, Rendered


def cut(rendered: Rendered, settings: TrainConfig) -> Rendered | None:
    """Keep the first `train.max_length` tokens of a row; None if it is longer and `train.overlong` drops it."""
    longest = settings.max_length
    if len(rendered.input_ids) <= longest:
        return rendered
    if settings.overlong == "drop":
        return None
    return Rendered(rendered.input_ids[:longest], rendered.labels[:longest])


def trained_tokens(rendered: Rendered) -> int:
    """Count the labels that contribute to the loss: all but one on the first token, which is never predicted."""
    return sum(label != IGNORE_INDEX for label in rendered.labels[1:])


# Truncation guesses how much to cut from the length in characters, and closes in slowly where the prompt's own words weigh.
MOST_CUTS = 20


def shorten(messages: Messages, tokens: int | None, limit: int | None) -> list[Message]:
    """Cut the end of the longest message so that about `limit` of `tokens` tokens are left; a quarter where not known."""
    lengths = [len(message["content"]) for message in messages]
    # A little less than what fits: characters are not tokens, and the prompt's own words stay.
    kept = 0.95 * limit / tokens if tokens and limit else 0.75
    longest = max(range(len(messages)), key=lengths.__getitem__)
    excess = min(lengths[longest] - 1, int((1 - kept) * sum(lengths)) + 8)
    return [
        Message(**{**message, "content": message["content"][: lengths[at] - excess]}) if at == longest else message
        for at, message in enumerate(messages)
    ]
