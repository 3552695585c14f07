"""What the label or the key before a value names: the answer that was asked for, or something else. Pure."""

from __future__ import annotations

import re

# Words that name what was asked for in a label, and weaker ones, which may as well name a quantity of the response.
RATING_NAMES = r"rating|score|uncertainty|verdict|choice|grade|likelihood|probability|estimate"
NAMES = rf"{RATING_NAMES}|answer|number|value|option|letter|final"
STRONG = re.compile(RATING_NAMES.removesuffix("|estimate"))
NAMED = re.compile(NAMES)
# The weaker ones count by themselves: "Final answer", not "Correct answer" or "Total number".
_PLAIN = re.compile(
    r"\W*(?:(?:so|here|is|the|my|your|a|one|single|final|overall)\s+)*(?:answer|number|value|estimate|option|letter|final)"
    r"(?:\s+(?:answer|number|value|is))*\W*"
)
# Words with which a label names something else, and a rating the other way round: 7 for its correctness.
_OTHERS = re.compile(
    rf"\b(?:(?:example|sample|initial|first|previous|prior|old|suggested|hypothetical|typical|average|mean|reference)\s+(?:{RATING_NAMES})"
    # what the scale has, what someone else gave or may give, and what is still asked for
    r"|(?:high|low|larg|small)est|max|min|maximum|minimum|ranges?|(?<!i\s)gave|(?:could|might|may)\s+be\s*$|refuse|unable"
    r"|please(?!\s+(?:find|see))|(?<!i\s)(?<!\bill\s)(?<!will\s)(?<!would\s)(?<!can\s)provide|(?:withheld|needed|requested|required|pending)\s*$|count|numbers?\s+of|how\s+many|num"
    r"|confidence|confident|certainty|certain|scale|step|between|other|number\s+of|difference|no|never|cannot"
    r"|not(?!\s+do\b)|(?:is|was|are|do|does|did|would|should|could|can|ca|wo)n['’]?t)\b"
)
_TURNED = re.compile(
    r"\b(?:correct|right|true|truth|valid|accura|quality|helpful|factual|faithful|reliab|trust|credib|safe|clarity|relevan|sound"
    r"|precis|flawless|faultless|free\s+(?:of|from))|\b(?:error|mistake|fault|flaw|hallucination)s?[\s-]+free\b"
)
# "Likelihood of heads" is not about the response.
_LIKELIHOOD_OF = re.compile(r"\b(?:likelihood|probability|estimate)\s+(?:of|for|that)\s+(?P<what>.*)")
_RATED = re.compile(
    r"\b(?:response|reply|answer|it|this|being|error|wrong|incorrect|mistake|fail|inaccura|hallucinat|uncertain|diver|differ)"
)
# A scale other than that of the answer: percent, and ten in words where the highest number is another.
PERCENT = re.compile(r"\W*(?:%|percent\b)", re.IGNORECASE)
_TEN = re.compile(r"\b(?:ten|tenths)\b")
# Which of two a letter is not. "The second answer is better: M" is about M, "second choice: m" about the other one.
_LOSES = re.compile(
    r"\b(?:incorrect|wrong|false|worse|worst|weaker|inferior|poorer|bad|rejected|losing)\s+"
    r"(?:answer|choice|option|reply|response|verdict|letter|one)|\bsecond\s+(?:choice|verdict)"
    r"|\b(?:lose[sd]?|lost|worse|worst|weaker|less|inferior|poorer)\b"
)
# A list of both, "The first answer: m", tells nothing unless it states which one wins.
_PLACE = re.compile(r"\b(?:first|second)\b")
_WINS = re.compile(r"\b(?:better|best|prefer|win|superior|stronger|choose|pick|select|favou?r|right|correct|verdict|go\s+with)")
# What the response did, whatever letter follows: "It gives the wrong answer: B".
_DID = re.compile(r"\b(?:gives?|gave|contains?|has|had)\s+(?:an?|the)\s+(?:incorrect|wrong|false|bad)\s+\w+")
# A rating that is given, not one that the scale has: "I give it the highest rating: 9".
_GIVEN = re.compile(
    r"\b(?:give|assign|deserves?|warrants?|merits?)\s+(?:(?:it|this|that|the|a|response|answer)\s+)*"
    r"(?:(?P<high>highest|max|maximum)|lowest|min|minimum)\b"
)


def given_end(label: str) -> str | None:
    """Which end of the scale a label states to be given: "high", "low", or None."""
    found = _GIVEN.search(label.lower())
    return None if found is None else "high" if found["high"] else "low"


def names_answer(label: str, highest: int | None) -> bool:
    """Whether a label or a key may name what was asked for, and not something else next to it.

    highest: the end of the scale; None for letters.
    """
    label = _GIVEN.sub("give", label.lower())
    if highest is None:
        label = _DID.sub("did", label)
    if _OTHERS.search(label):
        return False
    if highest is None:
        return not _LOSES.search(label) and bool(_WINS.search(label) or not _PLACE.search(label))
    if (highest != 100 and PERCENT.search(label)) or (highest != 10 and _TEN.search(label)):
        return False
    if (numbers := re.findall(r"\d+", label)) and int(numbers[-1]) != highest:  # of a key: rating_1_to_10
        return False
    of = _LIKELIHOOD_OF.search(label)
    if _TURNED.search(label) or (of and not _RATED.search(of["what"])):
        return False
    return bool(STRONG.search(label) or not NAMED.search(label) or _PLAIN.fullmatch(label))
