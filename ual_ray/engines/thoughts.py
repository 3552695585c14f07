"""The thought of a reply: its marks, and what follows it. Pure."""

import re
from functools import cache

from ual_ray.formatting import nfkc

# The mark before a thought and the one behind it.
THOUGHT_MARKS = (
    *(
        (f"<{name}>", f"</{name}>")
        for name in ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "seed:think")
    ),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|think|>", "<|/think|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
# Marks of further models: a tag or a special token that is named after thinking, with words before and behind.
_THINKS = r"(?:think|thinking|thought|thoughts|reason|reasoning|reflection)"
_TAG_NAME = rf"(?:\w{{1,40}}[:_-])?(?:ant)?{_THINKS}(?:[:_-]\w{{1,40}})?"
_OPENS = re.compile(
    rf"(?<!`)(?:<\s*{_TAG_NAME}\s*>|<\|(?:(?:start|begin)[_▁](?:of[_▁])?)?{_THINKS}(?:_(?:start|begin))?\|>|"
    + "|".join(re.escape(opening) for opening, _ in THOUGHT_MARKS)
    + ")",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    rf"<\s*/\s*{_TAG_NAME}\s*>|<\|/{_THINKS}\|>|<\|end[_▁](?:of[_▁])?{_THINKS}\|>|<\|{_THINKS}_end\|>|"
    + "|".join(re.escape(closing) for _, closing in THOUGHT_MARKS),
    re.IGNORECASE,
)
# Tags that are thoughts where a reply starts with them; elsewhere they may be of a text.
_FIRST_TAG = re.compile(
    r"\s*(?:<\|?(analysis|scratchpad|(?:(?:inner|internal)_)?(?:monologue|thoughts?)|cot|chain_of_thought|rationale|plan|planning"
    r"|reflect|ponder|brainstorm|deliberation|details(?= type=.?reasoning))(?:\s[^<>]{0,200})?\|?>"
    rf"|\[(?:begin\s|start\s)?({_THINKS})\])",
    re.IGNORECASE,
)
# gpt-oss: channels with a name each, of which the last, "final", is the reply; also with the special tokens left out.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w++)(?:(?!<\|(?:message|channel)\|>).)*<\|message\|>", re.DOTALL)
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z0-9\"'(*])")
_BARE_FINAL = "assistantfinal"
# Special tokens that an engine leaves in a text.
_SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<(?:eos|bos|pad|end_of_turn)>|[\u200b\u2060\ufeff\ufe0f\u20e3]")


def spoken(text: str) -> str | None:
    """Return what follows the thought, all of it where there is none; None for a thought that does not end."""
    if channels := [*_CHANNEL.finditer(text)]:
        last = channels[-1]
        return _plain(text[last.end() :]) if last[1] == "final" else None
    if _BARE_ANALYSIS.match(text):
        _, found, reply = text.rpartition(_BARE_FINAL)
        return _plain(reply) if found else None
    if first := _FIRST_TAG.match(text):
        closed = [*re.finditer(rf"[<\[]\|?(?:/|end\s){first[1] or first[2]}\|?[>\]]", text, re.IGNORECASE)]
        return _plain(text[closed[-1].end() :]) if closed else None
    text = nfkc(text)  # marks of DeepSeek have wide bars
    # A prompt may hold the opening mark already, so the last closing one alone counts.
    text = text[end_of_thought(text) :]
    return None if _OPENS.search(text) else _plain(text)


def behind_thought(text: str) -> str:
    """Return an answer as it stands, without the thought that it starts with; "" where that does not end.

    Marks elsewhere are of the answer. A closing mark without an opening one ends a thought that the prompt opened.
    """
    start = len(text) - len(text.lstrip())
    if _CHANNEL.match(text, start) or _BARE_ANALYSIS.match(text):
        return spoken(text) or ""
    opening = _OPENS.match(text, start)
    close = _CLOSES.search(text, opening.end() if opening else 0)
    if opening is None and (close is None or text[: close.start()].endswith("`") or _OPENS.search(text, 0, close.start())):
        return text
    return text[close.end() :].lstrip() if close else ""


@cache
def marks_among(tokens: frozenset[str]) -> frozenset[str]:
    """Pick the tokens that open or close a thought, alone or with the text behind them (`<|channel>thought`)."""
    starts = {token for token in tokens if any(opening.startswith(token) for opening, _ in THOUGHT_MARKS)}
    return frozenset(token for token in tokens if token in starts or _OPENS.fullmatch(token) or _CLOSES.fullmatch(token))


def end_of_thought(text: str) -> int:
    """Return where the last closing mark of a thought ends in a text; 0 without one."""
    return max((close.end() for close in _CLOSES.finditer(text)), default=0)


def opens_thought(prompt: str) -> bool:
    """Whether a rendered prompt ends in an opening mark, so that the reply starts within a thought."""
    found = [*_OPENS.finditer(prompt)]
    return bool(found) and not prompt[found[-1].end() :].strip()


def left_open(said: str) -> bool:
    """Whether a reply starts with a tag, or a fence named after thinking, that it never closes: a thought in unknown marks."""
    tag = re.match(r"<([\w:-]+)(?:\s[^<>]*)?>", said)
    fence = re.match(rf"```{_THINKS}\w*\s", said, re.IGNORECASE)
    return (tag is not None and f"</{tag[1]}" not in said) or (fence is not None and said.count("```") == 1)


def _plain(text: str) -> str:
    return _SPECIAL.sub("", nfkc(text)).strip()
