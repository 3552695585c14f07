r"""The number or the letter that a reply gives as its answer; nothing where it may mean something else. Pure.

    read_choice("<think>2 things ...</think>\n**Rating (0-9): 7**", ("0", ..., "9"))    '7'
    read_choice("1. The response could be", ("0", ..., "9"))                            Unread('...')

Nothing but these is read, and of two answers that differ neither:

- alone: the whole reply, or its first line or its last one
- stated: "Rating: 7", "I would give it a 7", "Reply M is better". Every word before it has to be one of those listed below:
  with any other ("example", "not", "confidence", "correct") it may be of something else, or the other way round
- in JSON at the end of the reply, under a key of such words, with no other number in it
- the whole reply in a fence, a tag or a box
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ual_ray.engines.finish_reason import is_cut, is_end
from ual_ray.engines.thoughts import left_open, spoken

# Words that name a rating or a verdict; one of them has to stand before an answer. "The answer is 7" rates nothing.
_RATING = frozenset((
    "rating", "rate", "score", "grade", "uncertainty", "likelihood", "probability", "estimate", "say", "give", "gave", "assign",
    "choose", "rated",
))  # fmt: skip
_VERDICT = frozenset((
    "answer", "verdict", "choice", "choose", "option", "letter", "winner", "decision", "better", "best", "preferred", "prefer",
    "preference", "say", "pick", "go",
))  # fmt: skip
# Words that may stand with them: they change nothing.
_NEUTRAL = frozenset((
    "a", "above", "after", "an", "analysis", "and", "as", "assessment", "at", "based", "be", "being", "conclusion",
    "consideration", "final", "for", "go", "hence", "here", "i", "i'd", "i'll", "in", "is", "it", "its", "level", "my", "of",
    "on", "one", "opinion", "overall", "pair", "provide", "reply", "response", "so", "that", "the", "then", "therefore",
    "think", "this", "thus", "to", "view", "will", "with", "would", "your",
))  # fmt: skip
# What a rating is of.
_RATED = frozenset((
    "answer", "contain", "contains", "error", "errors", "incorrect", "inaccurate", "mistake", "mistakes", "wrong",
    "hallucination",
))  # fmt: skip
# The only key of the JSON that a server is asked for.
ANSWER_KEY = "answer"
_SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Marks of emphasis, quotation and lists.
_MARKUP = re.compile(r"[*`\"“”$]+|(?<!\w)['‘’]|['’](?!\w)|</?[bi]>|^[ \t]*(?:>|#+|[-•])\s+", re.MULTILINE)
_SENTENCES = re.compile(r"(?<=[.!?;])\s+|,\s+(?=(?:so|thus|hence|therefore)\b)")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# A sentence behind an answer that takes it back, or changes its scale.
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?;,(]|\s[-–—])\s*(?:(?:no|oh|but|hmm)\W+)?(?:wait|actually|hmm+|sorry|scratch that|correction|hold on|never ?mind"
    r"|(?:on|upon) (?:reflection|second thoughts?))\b|\bno,|\b(?:reconsider|rethink)\w*|\btake (?:it|that) back\b"
    r"|\bpercent\b",
    re.IGNORECASE,
)
# A number in words that counts nothing: "maybe eight", but not "two errors".
_SPELLED_ALONE = re.compile(rf"\b({'|'.join(_SPELLED)})\b(?!\s+(?!(?:or|and|out|instead|rather)\b)[a-z])", re.IGNORECASE)
# The whole reply in a fence, a tag or a box.
_WRAPPED = (
    re.compile(r"```[\w+-]*+(?P<inside>.*?)```", re.DOTALL),
    re.compile(r"<(?:answer|rating|score|verdict|choice)>(?P<inside>[^<>]*)</\w+>", re.IGNORECASE),
    re.compile(r"\$*\\boxed\s*\{(?:\s*\\(?:text|mathbf|mathrm)\s*\{)?(?P<inside>[^{}]*)\}+\s*\$*"),
)
# Behind JSON, in lines of their own: "Hope that helps."
_FAREWELL = re.compile(r"[ .]*(?:\n[^\d{}\[\]]{0,200})?")
# A value of JSON next to the answer that may change its meaning: another number, or a scale.
_NUMERIC = re.compile(r"(?:[\d\W]|to|out|of|percent|points?)+")


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
    found = None if left_open(said) else _reader(tuple(choices)).read(said)
    return found or Unread(f"unparsable: the reply does not end in an answer: {_shown(said)}")


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 40 else f"...{words[-37:]}")


@dataclass(frozen=True)
class _Reader:
    """How one set of choices is read.

    names, words: those that a statement needs one of, and all that it may have.
    answer: a pattern of a sentence, with the groups 'before', 'value', 'wins' and 'behind'.
    scale: a pattern of the scale where a reply repeats it.
    """

    choices: frozenset[str]
    names: frozenset[str]
    words: frozenset[str]
    answer: re.Pattern[str]
    scale: re.Pattern[str]

    def read(self, said: str) -> str | None:
        """Return the answer of a reply, or None."""
        for pattern in _WRAPPED:
            if whole := pattern.fullmatch(said):
                said = whole["inside"].strip()
        value, rest = _json_at_end(said)
        if value is not None and not self._stated(rest) and not _takes_back(rest):
            return self._of_json(value)
        return self._stated(said)

    def _stated(self, said: str) -> str | None:
        """Return the one answer that the sentences of a reply give."""
        lines = [line.strip() for line in self._plain(said).splitlines() if line.strip()]
        values, behind, placed = set(), [""], False
        for at, line in enumerate(lines):
            for sentence in (line,) if self._answer(line, alone=True) else _SENTENCES.split(line):
                if found := self._answer(sentence, alone=sentence == line):
                    values.add(_whole_number(found["value"]))
                    placed = placed or at in (0, len(lines) - 1) or self._is_stated(found)
                    behind = [found["behind"]]
                else:
                    behind.append(sentence)
        if len(values) != 1 or not placed or not values <= self.choices or _takes_back(" ".join(behind), *values):
            return None
        return values.pop()

    def _answer(self, sentence: str, alone: bool) -> re.Match[str] | None:
        """Match a sentence that states an answer; or, if it may stand alone, one that has nothing else."""
        found = self.answer.fullmatch(sentence)
        return found if found and (self._is_stated(found) or (alone and not _WORD.search(found["before"]))) else None

    def _is_stated(self, found: re.Match[str]) -> bool:
        return bool(found["wins"]) or self._names(found["before"])

    def _names(self, text: str) -> bool:
        """Whether words before an answer, or of a key, name what was asked for and nothing else."""
        spelled = {*_WORD.findall(text)}
        words = {word.lower().replace("’", "'") for word in spelled}
        return bool(words & self.names) and words <= self.words and not self.choices & spelled and not re.search(r"\d", text)

    def _plain(self, text: str) -> str:
        return self.scale.sub(" ", _MARKUP.sub("", re.sub(r"[_{}]", " ", text)))

    def _of_json(self, value: Any) -> str | None:
        """Read an answer from JSON: the only value of a list, or the value of the one key that names it."""
        if isinstance(value, list) and len(value) == 1:
            return self._of_json(value[0])
        if isinstance(value, dict):
            named = {key for key in value if self._names(self._plain(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)))}
            if len(value) == 1:
                ((key, part),) = value.items()
                if key == ANSWER_KEY or isinstance(part, dict):  # {"result": {"rating": 7}}
                    return self._of_json(part)
            if any(_is_number(part) for key, part in value.items() if key not in named):
                return None
            found = {self._of_json(value[key]) for key in named if value[key] is not None}
            return found.pop() if len(found) == 1 else None
        return None if isinstance(value, bool | list) else self._stated(str(value))


@lru_cache(maxsize=16)
def _reader(choices: tuple[str, ...]) -> _Reader:
    return (_number_reader if all(choice.isdecimal() for choice in choices) else _letter_reader)(choices)


def _letter_reader(choices: tuple[str, ...]) -> _Reader:
    letters = "|".join(sorted(map(re.escape, choices)))
    value = r"(?:(?i:option|reply|answer|response|choice|verdict)\s+)?[(\[]{0,2}"
    value += rf"(?P<value>{letters})(?![\w'’])[)\]]{{0,2}}"
    wins = r"(?P<wins>\s+(?i:is|was)\s+(?:(?i:clearly|the)\s+)*(?i:better|best|correct|right)(?:\s+\w+)?)?"
    # "B. No": the letter and the text of its option.
    option = r"(?:[.):,]\s+(?i:yes|no|correct|incorrect|right|wrong|true|false)\b)?"
    no_letter = rf"(?:(?!\b(?:{letters})\b).)*"
    because = rf"(?:,?\s+(?i:because|since|as)\b|(?<=\w),|\s[-–—]\s){no_letter}"
    sentence = rf"(?P<before>[^\d?]*?)\b{value}{wins}{option}(?P<behind>(?:\s*\([^()]*\)|{because})?)[.!]?"
    words = _VERDICT | _NEUTRAL
    return _Reader(frozenset(choices), _VERDICT, words, re.compile(sentence, re.DOTALL), re.compile(r"(?!)"))


def _number_reader(choices: tuple[str, ...]) -> _Reader:
    low, high = min(map(int, choices)), max(map(int, choices))
    percent = high == 100
    of = rf"\s*/\s*{high}|\s+(?:out\s+)?of\s+{high}" + (r"|\s*%|\s+percent" if percent else "")
    value = rf"(?<![\w.–-])(?P<value>\d+(?:\.0+)?)(?:{of})?(?:\s+points?)?[)\]]*"
    behind = r"(?P<behind>(?:\s*\([^()\d]*\))?(?:(?:,|\s[-–—])\s+\D*)?)\s*[.!]?"
    sentence = rf"(?P<before>[^\d?{'' if percent else '%'}]*?){value}(?P<wins>){behind}"
    span = rf"{low}\s*(?:-|–|—|\.\.+|to|through|and)\s*{high}"
    scale = rf"(?i)[(\[]\s*(?:from\s+|between\s+|(?:scale|range)\s*:?\s*)?{span}(?:\s*scale)?\s*[)\]]"
    scale += rf"|\b(?:on\s+)?(?:a|the)\s+scale\s+(?:of|from|between)\s+{span}\b\s*,?"
    scale += rf"|\b(?:from|between|of)\s+{span}\b\s*[,:]?|(?<![\d.-]){span}(?=\s*[:=)])"
    words = _RATING | _NEUTRAL | _RATED | ({"percent", "percentage"} if percent else set())
    return _Reader(frozenset(choices), _RATING, words, re.compile(sentence, re.DOTALL), re.compile(scale))


def _whole_number(value: str) -> str:
    """Write 07 and 7.0 as 7. 1.0 stays: it is 100% to a model that gives probabilities."""
    number = re.fullmatch(r"0*(\d+)(\.0+)?", value)
    return number[1] if number and not (number[2] and number[1] == "1") else value


def _takes_back(behind: str, *values: str) -> bool:
    """Whether words behind an answer take it back, or give another number than it in words."""
    spelled = {word.lower() for word in _SPELLED_ALONE.findall(behind)}
    own = {word for number, word in enumerate(_SPELLED) if str(number) in values}
    return _TAKEN_BACK.search(behind) is not None or not spelled <= own


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMERIC.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_at_end(said: str) -> tuple[Any, str]:
    """Parse the JSON with which a reply ends, and return what follows it; None where there is none.

    A list has to be the whole reply: behind words it is a reference, as in "Rating: 7 [1]".
    """
    end = said[: max(said.rfind("}"), said.rfind("]")) + 1]
    rest = said[len(end) :]
    if end and _FAREWELL.fullmatch(rest):
        starts = [at for at, character in enumerate(end) if character == "{"][-20:] if end.endswith("}") else [0]
        for at in starts:
            try:
                return json.loads(end[at:]), rest
            except (ValueError, RecursionError):
                continue
    return None, ""
