r"""What a reply states: the thought taken out, and a number or a letter only where the reply gives it as its answer. Pure.

    read_choice("<think>2 things ...</think>\n**Rating (0-9): 7**", ("0", ..., "9"))    '7'
    read_choice("1. The response could be", ("0", ..., "9"))                            Unread('...')

A reply is read from its end. It has to end in an anchored form: the answer alone, a label with the answer behind it
("Rating: 7", "I would give it a 7"), JSON, a fenced block, a tag or a box. The first number of a text is never taken for it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ual_ray.engines.finish_reason import is_cut, is_end
from ual_ray.engines.reply_labels import NAMED, NAMES, PERCENT, RATING_NAMES, STRONG, given_end, names_answer

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
_TAG_NAME = rf"(?:\w+[:_-])?(?:ant)?{_THINKS}(?:[:_-]\w+)?"
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
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>", re.DOTALL)
_BARE_ANALYSIS = re.compile(r"\s*(?:analysis|commentary)(?=[A-Z0-9\"'(*])")
_BARE_FINAL = "assistantfinal"
# Special tokens that an engine leaves in a text.
_SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<(?:eos|bos|pad|end_of_turn)>|[\u200b\u2060\ufeff\ufe0f\u20e3]")

_SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Words behind an answer: "Hope that helps."
_FAREWELL = re.compile(r"[^\d{}\[\]`]{0,200}")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)\n?[ \t]*```", re.DOTALL)
_TAG = re.compile(r"<(\w+)>\s*([^<>]*?)\s*</\1>\s*\Z")
_BOX = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathbf|mathrm)\s*\{)?([^{}]*)\}+\s*\$*\s*\Z")
_MARKUP = re.compile(r"[*_`\"“”'‘’$]+|^\s*(?:>|#+|[-•])\s+", re.MULTILINE)

_CLAUSES = re.compile(r"[.,;!?]|\b(?:so|thus|hence|therefore|but)\b")
# Words behind an answer that take it back: another number in words, which counts nothing, or a sentence that turns away.
_TAKEN_BACK = re.compile(
    rf"(?i)\b(?:{'|'.join(_SPELLED)})\b(?!\s+(?!instead|rather|out|of|or|and)[a-z])"
    r"|(?:^|[.!?;,(]|\s[-–—])\s*(?:(?:no|oh|but|hmm)\W+)?(?:wait|actually|sorry|scratch\s+that|correction|hold\s+on"
    r"|never\s?mind|(?:on|upon)\s+(?:reflection|second\s+thoughts?))\b|[.!?;,]\s*no\b\W*[A-Za-z]\W*\Z|\b(?:reconsider|rethink)\w*"
    r"|\btake\s+(?:it|that)\s+back\b"
)
# Keys of JSON that state the scale of another one's value.
_BOUND = re.compile(r"\b(?:min|max|minimum|maximum|scale|range|unit|out of)\b|^(?:of|total|best|highest|denominator|base)$")
_RETRACTION = re.compile(r"(?i)\W*(?:wait|actually|hmm|on reflection|correction|no,)")
_SENTENCES = re.compile(r"(?<=[.!?;])\s+|,\s+(?=(?:so|thus|therefore|hence)\b)")
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Unread:
    """A reply from which nothing was read; `reason` starts with its kind: 'cut: ...' or 'unparsable: ...'."""

    reason: str


NO_THOUGHT_END = Unread("unparsable: the thought did not end")
EMPTY = Unread("unparsable: the reply is empty")
CUT = Unread("cut: the reply reached its maximum length (finish_reason 'length')")


def not_ended(finish_reason: str | None) -> Unread:
    """State that a filter, an error or something unknown ended a reply."""
    return Unread(f"unparsable: the model did not end the reply (finish_reason {finish_reason!r})")


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
    text = unicodedata.normalize("NFKC", text)  # marks of DeepSeek have wide bars
    # A prompt may hold the opening mark already, so the last closing one alone counts.
    text = text[end_of_thought(text) :]
    return None if _OPENS.search(text) else _plain(text)


def end_of_thought(text: str) -> int:
    """Return where the last closing mark of a thought ends in a text; 0 without one."""
    return max((close.end() for close in _CLOSES.finditer(text)), default=0)


def opens_thought(prompt: str) -> bool:
    """Whether a rendered prompt ends in an opening mark, so that the reply starts within a thought."""
    found = [*_OPENS.finditer(prompt)]
    return bool(found) and not prompt[found[-1].end() :].strip()


def answered(text: str, finish_reason: str | None) -> str | Unread:
    """Return a reply without its thought, where the model ended it itself and gave something."""
    if is_cut(finish_reason):
        return CUT
    if not is_end(finish_reason):
        return not_ended(finish_reason)
    said = spoken(text)
    return NO_THOUGHT_END if said is None else said or EMPTY


def read_choice(text: str, choices: Sequence[str]) -> str | Unread:
    """Read which of the choices a reply gives that the model ended."""
    return read_reply(text, None, choices)


def read_reply(text: str, finish_reason: str | None, choices: Sequence[str]) -> str | Unread:
    """Read which of the choices, whole numbers or letters, a reply gives as its answer."""
    said = answered(text, finish_reason)
    if isinstance(said, Unread):
        return said
    reader = _reader(tuple(choices))
    found = None if _left_open(said) else next((value for value in _candidates(said, reader) if value is not None), None)
    return found if found is not None else Unread(f"unparsable: the reply does not end in an answer: {_shown(said)}")


def _left_open(said: str) -> bool:
    """Whether a reply starts with a tag, or a fence named after thinking, that it never closes: a thought in unknown marks."""
    tag = re.match(r"<([\w:-]+)(?:\s[^<>]*)?>", said)
    fence = re.match(rf"```{_THINKS}\w*\s", said, re.IGNORECASE)
    return (tag is not None and f"</{tag[1]}" not in said) or (fence is not None and said.count("```") == 1)


def _plain(text: str) -> str:
    return _SPECIAL.sub("", unicodedata.normalize("NFKC", text)).strip()


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 40 else f"...{words[-37:]}")


@dataclass(frozen=True)
class _Reader:
    """Patterns of one set of choices; each has the group 'value'. `echo` matches the scale where the reply repeats it.

    highest: the end of the scale; None for letters.
    """

    choices: frozenset[str]
    highest: int | None
    alone: re.Pattern[str]
    labelled: re.Pattern[str]
    echo: re.Pattern[str]

    def value(self, found: re.Match[str] | None) -> str | None:
        if found is None:
            return None
        label = found.groupdict().get("label") or ""
        if not names_answer(_CLAUSES.split(label.rstrip(" :=.-–—"))[-1], self.highest):
            return None
        value = found["value"]
        number = re.fullmatch(r"0*(\d+)(\.0+)?", value)
        value = number[1] if number else value
        if number and number[2] and value == "1":  # 1.0 is 100% to a model that gives probabilities
            return None
        end = given_end(label)
        if end and self.highest is not None and value != str((min, max)[end == "high"](map(int, self.choices))):
            return None
        rest = found.string[found.end("value") :]
        if self.highest not in (None, 100) and PERCENT.match(rest):
            return None
        doubts = {doubt[0].lower() for doubt in _TAKEN_BACK.finditer(rest)}
        spelled = {word for at, word in enumerate(_SPELLED) if str(at) == value}
        return value if value in self.choices and doubts <= spelled else None

    def whole(self, text: str) -> str | None:
        """Read a text that is an answer alone, or a label and an answer."""
        text = self.echo.sub(" ", _MARKUP.sub("", text)).strip()
        return self.value(self.alone.fullmatch(text)) or self.value(self.labelled.fullmatch(text))

    def label(self, text: str) -> str | None:
        """Read a text that is a label and an answer."""
        return self.value(self.labelled.fullmatch(self.echo.sub(" ", _MARKUP.sub("", text)).strip()))


@lru_cache(maxsize=16)
def _reader(choices: tuple[str, ...]) -> _Reader:
    numbers = all(choice.isdecimal() for choice in choices)
    high = None
    letters = "|".join(sorted(map(re.escape, choices)))
    # (?i:...) below is for labels alone: the letter m is another verdict than M.
    if numbers:
        low, high = min(map(int, choices)), max(map(int, choices))
        percent = r"|\s*%|\s*percent" if high == 100 else ""
        of = rf"(?:\s*/\s*{high}|\s+(?:out\s+)?of\s+{high}{percent})?"
        value = rf"(?P<value>\d+(?:\.0+)?){of}(?:\s+points?)?"
        span = rf"{low}\s*(?:-|–|—|\.\.+|to|through|and)\s*{high}"
        echo = rf"(?i)[(\[]\s*(?:from\s+|between\s+|(?:scale|range)\s*:?\s*)?{span}(?:\s*scale)?\s*[)\]]"
        echo += rf"|\b(?:on\s+)?(?:a|the)\s+scale\s+(?:of|from|between)\s+{span}\b\s*,?"
        echo += rf"|\b(?:from|between|of)\s+{span}\b\s*[,:]?|(?<![\d.-]){span}(?=\s*[:=)])"
    else:
        value = r"(?:(?i:option|reply|answer|response|choice|verdict)\s+)?[(\[]{0,2}"
        value += rf"(?P<value>{letters})(?:[)\]]{{1,2}}|\b)(?!['’])"
        echo = r"(?!)"
    # "A, B" and "A, or B" are two answers.
    tail = r"(?:\s*\([^()\d]*\)|[.;,]\s+\D*)?"
    tail = tail if numbers else rf"(?![,;]?\s*(?:(?:and|or)\s+)?[(\[]?(?:{letters})\b)(?:[.):,]\s.*)?"
    # "B. No": the letter and the text of its option.
    because = r"(?:\s*\([^()\d]*\)|,?\s+(?i:because|since|as)\b\D*)?"
    option = r"(?:[.):,]\s+(?i:yes|no|correct|incorrect|right|wrong|true|false)\b[^\n]*)?"
    better = "" if numbers else r"(?:\s+(?i:is|was)\s+(?:clearly\s+)?(?i:the\s+)?(?i:better|best|correct|right)(?:\s+\w+)?)?"
    label = (
        rf"(?i:(?=[^:=\d]{{1,{_LONGEST_LABEL}}}(?:[:=]|\s[-–—]\s))[^:=\d]*\b(?:{NAMES})s?\b[^:=\d]*(?:[:=]|\s[-–—]\s)|[:=])\s*"
    )
    verb = rf"(?i:[^:=\d]{{0,{_LONGEST_LABEL}}}\b(?:{RATING_NAMES})\b[^:=\d.!?]{{0,40}}?\b(?:is|of|as|be|at|to)\s+(?:a\s+)?)"
    says = r"(?i:(?:(?:so|thus|therefore|overall)\W+)?I(?:\s+would|\s+will|d|ll)?\s+"
    says += r"(?:rate|say|give|assign|choose|pick|go\s+with)"
    says += r"(?:\s+(?:it|(?:this|that|the|its)(?:\s+(?:response|uncertainty|answer|one|pair))?))?"
    says += r"(?:\s+(?:as|at|with|to\s+be))?(?:\s+an?)?\s+)"
    answer_is = r"|(?i:(?:the\s+|my\s+)?(?:(?:correct|better|best|final)\s+)?(?:answer|reply|response|option|one)\s+is\s+)"
    answer_is = "" if numbers else answer_is
    end = r"[.!]?"
    alone = rf"[(\[]*(?:{value}){better}[)\]]*{end}" + (because if numbers else option)
    return _Reader(
        frozenset(choices),
        high,
        re.compile(alone),
        re.compile(rf"(?:(?P<label>{label}|{verb})|{says}{answer_is})(?:{value}){better}{end}{tail}", re.DOTALL),
        re.compile(echo),
    )


def _candidates(said: str, reader: _Reader) -> Iterator[str | None]:
    """Yield what each form gives, the surest first."""
    yield from _structured(said, reader)
    if _last_json(said, reader) is not None:  # its keys are not labels
        return
    lines = [line.strip() for line in said.splitlines() if line.strip(" \t*_`#>-")]
    if not lines:
        return
    bare = {reader.value(reader.alone.fullmatch(_MARKUP.sub("", line).strip())) for line in lines} - {None}
    labels = {reader.label(line) for line in lines} - {None}
    if bare and labels - bare and reader.whole(lines[0]) in bare:  # it answers at once, and then goes on to another question
        return
    if len(bare) > 1:  # a list of numbers, or several answers
        yield labels.pop() if len(labels) == 1 and reader.label(lines[-1]) else None
        return
    last = lines[-1]
    yield reader.whole(last)
    # The last sentence of the last line; "1." of a list is not followed by a label.
    yield reader.label(_SENTENCES.split(last)[-1])
    yield labels.pop() if len(labels) == 1 else None
    # An answer alone in the first line, and its explanation below.
    first = _MARKUP.sub("", lines[0]).strip()
    plain = not labels and not first.endswith((".", ")"))
    yield reader.whole(first) if plain and not any(map(_RETRACTION.match, lines[1:])) else None


def _structured(said: str, reader: _Reader) -> Iterator[str | None]:
    """Yield what a fenced block, JSON, a tag or a box at the end of the reply gives, before words without a digit."""
    fences = [*_FENCE.finditer(said)]
    if fences and _only_words(said[fences[-1].end() :], reader):
        inner = fences[-1][1].strip()
        yield _from_json(_parsed(inner), reader) or reader.whole(inner)
    yield _from_json(_last_json(said, reader), reader)
    if (tag := _TAG.search(said)) and _names_answer(tag[1], reader):
        yield reader.whole(tag[2])
    if box := _BOX.search(said):
        yield reader.whole(box[1])


def _only_words(text: str, reader: _Reader) -> bool:
    """Whether a text has no digit, no structure and no answer, which would be another one than that before it."""
    words = set(re.findall(r"\w+", text))
    spelled = {word.lower() for word in words} & {*_SPELLED}
    return _FAREWELL.fullmatch(text) is not None and not spelled and not words & reader.choices


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _last_json(said: str, reader: _Reader) -> Any:
    """Parse the last object of the reply where nothing follows it, or a farewell in a line of its own; or None.

    A list has to be the whole reply: behind words it is a reference, as in "Rating: 7 [1]".
    """
    end = said[: max(said.rfind("}"), said.rfind("]")) + 1]
    rest = said[len(end) :]
    if not end or not (_only_words(rest, reader) and (not rest.strip(" .") or rest.lstrip(" .").startswith("\n"))):
        return None
    starts = [at for at, character in enumerate(end) if character == "{"][-20:] if end.endswith("}") else [0]
    return next((value for at in starts if (value := _parsed(end[at:])) is not None), None)


def _from_json(value: Any, reader: _Reader) -> str | None:
    """Read an answer from JSON: the only value of a list, or the value of a key that names an answer."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float | str):
        return reader.whole(str(value))
    if isinstance(value, list):
        return _from_json(value[0], reader) if len(value) == 1 else None
    bounds = {key: part for key, part in value.items() if _BOUND.search(_words(key))}
    if any(not _of_scale(key, part, reader) for key, part in bounds.items()):
        return None
    named = {key: part for key, part in value.items() if _names_answer(key, reader) and key not in bounds}
    named = {key: part for key, part in named.items() if STRONG.search(_words(key))} or named
    if not named and len(value) == 1:  # {"result": {"rating": 7}}
        named = {key: part for key, part in value.items() if isinstance(part, dict)}
    found = {_from_json(part, reader) for part in named.values() if part is not None and not _is_prose(part)}
    return found.pop() if len(found) == 1 else None


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) > 1


def _of_scale(key: str, value: Any, reader: _Reader) -> bool:
    """Whether JSON that states a scale, such as {"max": 10}, states the one that was asked for."""
    if reader.highest is None or "min" in _words(key):
        return True
    return str(reader.highest) in re.findall(r"\d+", str(value))[-1:]


def _names_answer(key: str, reader: _Reader) -> bool:
    words = _words(key)
    return bool(NAMED.search(words)) and names_answer(words, reader.highest)


def _words(key: str) -> str:
    """Write a key such as finalRating or final_rating as words."""
    return re.sub(r"[_-]", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)).lower()
