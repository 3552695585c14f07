r"""The number or the letter that a reply gives as its answer; nothing where it may mean something else. Pure.

    read_choice("<think>2 things ...</think>\n**Rating (0-9): 7**", ("0", ..., "9"))    '7'
    read_choice("1. The response could be", ("0", ..., "9"))                            Unread('...')

Nothing but these is read, and of two answers that differ neither:

- alone: the whole reply, or its first line or its last one
- stated: "Rating: 7", "I would give it a 7", "Reply M is better". Every word before it has to be one of those listed below:
  with any other ("example", "not", "confidence", "correct") it may be of something else, or the other way round
- in JSON at the end of the reply, under a key of such words, behind such words, with no other number in it
- the whole reply in a fence, a bracket, a tag or a box

A heading, or a line that ends in a colon, counts as words before the line behind it. Other text in a fence is left out.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ual_ray.config.files import parse_json
from ual_ray.engines.requests import is_cut, is_end
from ual_ray.engines.thoughts import left_open, spoken

# Words that name a rating or a verdict; one of them has to stand before an answer. "The answer is 7" rates nothing.
_RATES = frozenset(("rating", "rate", "rated", "score", "uncertainty", "likelihood", "probability"))
_RATING = _RATES | {
    "estimate", "diversity", "assessment", "evaluation", "say", "give", "gave", "assign", "choose",
}  # fmt: skip
_VERDICT = frozenset((
    "answer", "verdict", "choice", "choose", "option", "letter", "winner", "decision", "better", "best", "preferred", "prefer",
    "preference", "say", "pick", "select", "selected",
))  # fmt: skip
# Words that may stand with them: they change nothing.
_NEUTRAL = frozenset((
    "a", "an", "as", "at", "be", "being", "final", "for", "i", "i'd", "i'll", "i'm", "is", "it", "it's", "its", "level", "my",
    "reply", "response", "should", "that", "the", "this", "will", "with", "would", "your",
))  # fmt: skip
# Words that change nothing before them, but may behind: "Based on the above, my rating is 7", "My rating is above 7".
_OPENING = _NEUTRAL | {
    "above", "after", "analysis", "and", "assessment", "based", "believe", "conclusion", "consideration", "estimated",
    "evaluation", "hence", "here", "here's", "in", "instruction", "json", "of", "okay", "on", "opinion", "overall", "pair",
    "provide", "reading", "so", "sure", "then", "therefore", "think", "thus", "to", "view",
}  # fmt: skip
# What a rating is of, behind its name: "I would give the answer 7" and "It would be wrong to rate it 7" rate nothing.
_RATED = frozenset((
    "answer", "contain", "contains", "error", "errors", "incorrect", "inaccurate", "mistake", "mistakes", "wrong",
    "hallucination",
))  # fmt: skip
# The only key of the JSON that a server is asked for.
ANSWER_KEY = "answer"
_SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# Marks of emphasis, quotation, lists and headings; but not of a result of GSM8K ("#### 7"), nor in 7*2.
_MARKUP = re.compile(
    r"(?<!\w)[*`\"“”'‘’]+|[*`\"“”'‘’]+(?!\w)|</?(?:[bip]|em|strong)>|^[ \t]*[-*_]{3,}[ \t]*$"
    r"|^[ \t]*(?:>|#{1,3}|[-•])\s+",
    re.MULTILINE,
)
_NOUN = re.compile(r"[(\[]*(?:option|reply|answer|response|choice)\s", re.IGNORECASE)
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
# A heading, and a line that ends in a colon, belong to the line behind them: "Example:\nRating: 7" rates nothing.
_HEADING = re.compile(r"^[ \t]*#{1,3}[ \t](.*[^\W\d]{2}|[^\W\d]+ \w)[^\w\n]*$", re.MULTILINE)
_GOES_ON = re.compile(r"([:,])\s*\n\s*")
_SENTENCES = re.compile(r"(?<=[!?;])\s+|(?<=[^.]\.)(?<!\w\.\w\.)\s+|,\s+(?=(?:so|thus|hence|therefore)\b)")
# A reason before a rating: "Since it is vague, I would rate it 7".
_REASON = re.compile(r"^(?:since|because)\b[^,\d]*,", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# "Error rating", "in JSON format": they change nothing.
_PHRASE = re.compile(r"\b(?:error|hallucination) (?=likelihood|probability|rating|score)|\bin (?:the )?json(?: format)?\b")
# "I'd go with 7", but not "I'd go to 7".
_GOES_WITH = re.compile(r"\bgo(?:ing)? (?:with|for)\b")
# Before the verb: "The rate is 7" is of something else.
_WHO = frozenset(("", "i", "i'd", "i'll", "would", "will"))
# Another scale than the one that was asked for, which is taken out before.
_OTHER_SCALE = re.compile(r"\bscale\b[^.\n]{0,40}\d", re.IGNORECASE)
# The same without its name: "7/10", "10 = worst".
_SCALE_ENDS = re.compile(
    r"\b\d+\s*(?:/|out of)\s*(\d{1,9})"
    r"|\b(\d{1,9})\s*(?:=|is|means|being)\s*(?:the\s+)?(?:worst|best|wrong|highest|(?:un)?certain)\b",
    re.IGNORECASE,
)
# A sentence behind an answer that takes it back, or changes its scale.
_TAKEN_BACK = re.compile(
    r"(?:^|[.!?;,(]|\s[-–—])\s*(?:(?:no|oh|but|hmm)\W+)?(?:wait|actually|hmm+|sorry|scratch that|correction|hold on|never ?mind"
    r"|(?:on|upon) (?:reflection|second thoughts?))\b|\bno,|\b(?:reconsider|rethink)\w*|\btake (?:it|that) back\b"
    r"|\bpercent\b",
    re.IGNORECASE,
)
# A number in words that counts nothing: "maybe eight", but not "two errors".
_SPELLED_ALONE = re.compile(rf"\b({'|'.join(_SPELLED)})\b(?!\s+(?!(?:or|and|out|instead|rather)\b)[a-z])", re.IGNORECASE)
# The whole reply in a fence, a bracket, a tag or a box; of a fence with several lines, which may be a program, only JSON.
_WRAPPED = (
    re.compile(r"```\w*+\s*+(?P<inside>[^`\n]*+|[{\[][^`]*+)\s*+(?:```)?"),
    re.compile(r"\[(?P<inside>[^\W\d][^\[\]{}\"]*)\]"),
    re.compile(r"\$+(?P<inside>[^$]+)\$+"),
    re.compile(r"\\[(\[](?P<inside>[^\\]+)\\[)\]]"),
    re.compile(r"<(?:final_)?(?:answer|rating|score|uncertainty|verdict|choice)>(?P<inside>[^<>]*)</\w+>", re.IGNORECASE),
    re.compile(r"(?:\$*|\\[\[(])\s*\\boxed\s*\{(?:\s*\\(?:text|mathbf|mathrm)\s*\{)?(?P<inside>[^{}]*)\}+\s*(?:\$*|\\[\])])"),
)
# An object with one key twice gives nothing.
_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else [])
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

    names: words of which a statement needs one. opening, words, rated: what may stand before it, behind it, behind `_RATES`.
    answer: a pattern of a sentence, with the groups 'before', 'value', 'wins' and 'behind'.
    scale: a pattern of the scale where a reply repeats it.
    """

    choices: frozenset[str]
    names: frozenset[str]
    opening: frozenset[str]
    words: frozenset[str]
    rated: frozenset[str]
    answer: re.Pattern[str]
    scale: re.Pattern[str]

    def read(self, said: str) -> str | None:
        """Return the answer of a reply, or None."""
        for pattern in _WRAPPED:
            if whole := pattern.fullmatch(said):
                said = whole["inside"].strip()
        value, head, rest = _json_at_end(said)
        if value is None:
            return self._stated(said)
        read = self._of_json(value)
        head = re.sub(r"```\w*", "\n", head)
        opening = _SENTENCES.split(self._plain(f"{head}¤").splitlines()[-1])[-1]  # empty where the JSON has a line of its own
        others = self._answers(head)[0] | self._answers(rest)[0]
        other = self._has_another_scale(f"{head}\n{rest}") or _takes_back(rest)
        return read if read and self._known(opening) and others <= {read} and not other else None

    def _stated(self, said: str) -> str | None:
        """Return the one answer that the sentences of a reply give."""
        values, placed, behind = self._answers(_FENCE.sub("\n", said))
        if len(values) != 1 or not placed or not values <= self.choices or _takes_back(behind, *values):
            return None
        if self._has_another_scale(said):
            return None
        return values.pop()

    def _has_another_scale(self, said: str) -> bool:
        """Whether a number is out of more than the highest choice, or that is not what means the worst."""
        highest = max((int(choice) for choice in self.choices if choice.isdecimal()), default=None)
        ends = {int(end) for found in _SCALE_ENDS.findall(said) for end in found if end}
        return highest is not None and any(end > highest for end in ends)

    def _answers(self, said: str) -> tuple[set[str], bool, str]:
        """Return the answers that the sentences give, whether one is stated, first or last, and the text behind the last."""
        text = self._plain(said)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # A first line "1." counts the others.
        ends = {len(lines) - 1} if lines and re.fullmatch(r"\d+\.", lines[0]) else {0, len(lines) - 1}
        values, behind, placed = set(), [""], False
        for at, line in enumerate(lines):
            for sentence in (line,) if self._answer(line, alone=True) else _SENTENCES.split(line):
                if found := self._answer(sentence, alone=sentence == line):
                    value = _whole_number(found["value"])
                    values.add(value)
                    # A number behind a = is the result of the task, and "Reply m" above other lines may be a heading.
                    heading = at < len(lines) - 1 and _NOUN.match(line)
                    placed |= self._is_stated(found) or (at in ends and not heading and not re.search(rf"=\s*{value}\b", text))
                    behind = [found["behind"]]
                else:
                    behind.append(sentence)
        return values, placed and not _OTHER_SCALE.search(text), " ".join(behind)

    def _answer(self, sentence: str, alone: bool) -> re.Match[str] | None:
        """Match a sentence that states an answer; or, if it may stand alone, one that has nothing else."""
        found = self.answer.fullmatch(sentence)
        alone = alone and found is not None and not found["wins"] and not re.search(r"[^\W_]|=", found["before"])
        return found if found and (alone or self._is_stated(found)) else None

    def _is_stated(self, found: re.Match[str]) -> bool:
        before = _REASON.sub("", found["before"].strip())
        return self._known(before, named=not found["wins"])

    def _known(self, text: str, named: bool = False) -> bool:
        """Whether words before an answer change nothing of it; and, if asked for, one of them names what it is."""
        words = [word.replace("’", "'") for word in _WORD.findall(text)]
        known, before = self.opening, ""
        for word in _GOES_WITH.sub("say", _PHRASE.sub("", " ".join(words).lower())).split():
            if word not in known or (word == "rate" and before not in _WHO):
                return False
            if word in self.names:
                known, named = self.words | (self.rated if word in _RATES else known & self.rated), False
            before = word
        return not named and self.choices.isdisjoint(words)

    def _plain(self, text: str) -> str:
        text = _HEADING.sub(r"\1:", re.sub(r"[_{}]", " ", text))
        return self.scale.sub(" ", _GOES_ON.sub(r"\1 ", _MARKUP.sub("", text)))

    def _of_json(self, value: Any) -> str | None:
        """Read an answer from JSON: the only value of a list, or the value of the one key that names it."""
        if isinstance(value, list) and len(value) == 1:
            return self._of_json(value[0])
        if isinstance(value, dict):
            named = {key for key in value if self._is_name(key)}
            if len(value) == 1:
                ((key, part),) = value.items()
                if key == ANSWER_KEY or isinstance(part, dict):  # {"result": {"rating": 7}}
                    return self._of_json(part)
            if any(_is_number(part) for key, part in value.items() if key not in named):
                return None
            found = {self._of_json(value[key]) for key in named if value[key] is not None}
            return found.pop() if len(found) == 1 else None
        return None if isinstance(value, bool | list) else self._stated(str(value))

    def _is_name(self, key: str) -> bool:
        plain = self._plain(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key))
        return not re.search(r"[\d%]", plain) and self._known(plain, named=True)


@lru_cache(maxsize=16)
def _reader(choices: tuple[str, ...]) -> _Reader:
    return (_number_reader if all(choice.isdecimal() for choice in choices) else _letter_reader)(choices)


# Between the words before an answer. No <, > or minus: "Rating: >7".
_BETWEEN = r"(?:[^\W\d]|[\s:,.'’()\[\]/–—-]|=>?|->|→)*?"


def _letter_reader(choices: tuple[str, ...]) -> _Reader:
    letters = "|".join(sorted(map(re.escape, choices)))
    # Not "[Reply m]", which the prompt holds.
    value = r"(?:(?<!\[)(?i:option|reply|answer|response|choice|verdict)\s+)?[(\[]{0,2}"
    value += rf"(?P<value>{letters})(?![\w'’])[)\]]{{0,2}}"
    one = r"(?i:reply|answer|response|one|option|choice)"
    better = rf"(?:(?i:clearly|slightly|much|the)\s+)*(?i:better|best|winner)(?:\s+(?:{one}|overall))?"
    better += rf"|the\s+(?i:correct|right)\s+{one}"
    wins = rf"(?P<wins>\s+(?i:is|was)\s+(?:{better})|\s+(?i:wins|serves\s+the\s+person\s+better))?"
    # "B. No": the letter and the text of its option.
    option = r"(?:[.):,]\s+(?i:yes|no|correct|incorrect|right|wrong|true|false)\b)?"
    no_letter = rf"(?:(?!\b(?:{letters})\b).)*"
    because = rf",?\s+(?i:because|since|as)\b{no_letter}"
    # "m is better, but only in tone" gives no verdict.
    behind = rf"(?P<behind>(?(wins){because}|(?:\s*\([^()]*\)|{because}|(?:(?<=\w),|\s[-–—]\s){no_letter}))?)"
    sentence = rf"(?P<before>{_BETWEEN})\b{value}{wins}{option}{behind}[.!。]?"
    opening, words = _VERDICT | _OPENING | {"correct"}, _VERDICT | _NEUTRAL | {"one"}
    return _Reader(
        frozenset(choices), _VERDICT, opening, words, frozenset(), re.compile(sentence, re.DOTALL), re.compile(r"(?!)")
    )


def _number_reader(choices: tuple[str, ...]) -> _Reader:
    low, high = min(map(int, choices)), max(map(int, choices))
    percent = high == 100
    of = rf"\s*/\s*{high}|\s+(?:out\s+)?of\s+{high}|\s*[(\[](?:out\s+)?of\s+{high}[)\]]"
    of += r"|\s*%|\s+percent" if percent else ""
    value = rf"(?<![\w.–-])(?P<value>\d+(?:\.0+)?)(?:{of})?(?:\s+points?)?[)\]]*"
    behind = r"(?P<behind>(?:\s*\([^()\d]*\))?(?:(?:,\s|\s[-–—]\s|—|\s+(?:because|since|due\s+to)\b)\D*+)?)\s*[.!。]?"
    sentence = rf"(?![^(]*\))(?P<before>{_BETWEEN}){value}(?P<wins>){behind}"
    span = rf"{low}\s*(?:-|–|—|\.\.+|to|through|and)\s*{high}"
    scale = rf"(?i)[(\[]\s*(?:from\s+|between\s+|(?:scale|range)\s*+:?\s*)?{span}(?:\s*scale)?\s*[)\]]"
    scale += rf"|\b(?:on\s+)?(?:a|the)\s+scale\s+(?:of|from|between)\s+{span}\b\s*,?"
    scale += rf"|\bon\s+(?:a|the|your)\s+{span}\s+scale\b"
    scale += rf"|\b(?:from|between|of)\s+{span}\b\s*[,:]?|(?<![\d.-]){span}(?=\s*[:=)])"
    scale += r"|\(%\)" if percent else ""
    percents = {"percent", "percentage"} if percent else set()
    opening, words = _RATING | _OPENING | percents, _RATING | _NEUTRAL | percents | {"about", "around", "in", "of", "on", "to"}
    return _Reader(frozenset(choices), _RATING, opening, words, _RATED, re.compile(sentence, re.DOTALL), re.compile(scale))


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


def _json_at_end(said: str) -> tuple[Any, str, str]:
    """Parse the JSON with which a reply ends; return what stands before and behind it, too, and None where there is none.

    A list has to be the whole reply: behind words it is a reference, as in "Rating: 7 [1]".
    """
    end = said[: max(said.rfind("}"), said.rfind("]")) + 1]
    rest = said[len(end) :]
    if end and _FAREWELL.fullmatch(rest):
        starts = [at for at, character in enumerate(end) if character == "{"][-20:] if end.endswith("}") else [0]
        for at in starts:
            try:
                return parse_json(end[at:], _DECODER.decode), end[:at], rest
            except ValueError:
                continue
    return None, "", ""
