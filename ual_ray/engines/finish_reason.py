"""Why a reply ended, in the words of any server: the model ended it, its length did, or something else did. Pure."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute

# length, model_length, max_tokens, MAX_OUTPUT_TOKENS, token_limit, model_context_window_exceeded, REASON_MAX_LEN, ...
_CUT = re.compile(r"(?i)length|max_?\w*(?:tokens|len|context)|token_limit|context_?window|^limit$|^incomplete$")
# Words of which a reason consists that the model ended its reply: stop, STOP_SEQUENCE, end_turn, eosFound, <|im_end|>, ...
# With any other word, also one that no server of today has, the reply is not the model's or not whole: content_filter, abort.
_ENDED = re.compile(
    r"(?i)stop|stopped|eos|eot|eom|end|ended|endoftext|turn|of|text|sequence|token|string|words?|str|id|im|s|matched|hit|found"
    r"|complete|completed|completion|done|finish|finished|normal|natural|success|reason|null|none|unspecified|unknown"
)
_CALLS_TOOL = re.compile(r"(?i)(?:tool|function)_?(?:calls?|use)")


def is_cut(finish_reason: str | None) -> bool:
    """Whether a reply was ended by its maximum length, and not by the model."""
    return finish_reason is not None and _CUT.search(finish_reason) is not None


def is_end(finish_reason: str | None) -> bool:
    """Whether the model ended a reply itself, or the server does not tell."""
    if not finish_reason or _CALLS_TOOL.fullmatch(finish_reason):
        return True
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", finish_reason)
    return bool(words) and all(map(_ENDED.fullmatch, words))


def count_cut(finish_reasons: pa.ChunkedArray) -> tuple[int, int]:
    """Count the replies that were cut, and all replies, in a column of lists of finish reasons."""
    reasons = pa.compute.list_flatten(finish_reasons)
    return pa.compute.sum(pa.compute.match_substring_regex(reasons, _CUT.pattern)).as_py() or 0, len(reasons)
