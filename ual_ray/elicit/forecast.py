"""What an elicitation will cost, before anything is sent: calls, tokens and money, from the first rows of the data.

What is answered already is counted over an even sample of the rows: a row that the own store has is not sent again; of others,
requests that the same elicitor has answered are not. Calls no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.data.canonical import usable_rows
from ual_ray.data.formats import BadRow
from ual_ray.data.peek import DataPeek
from ual_ray.elicit.estimators import make_estimators, requests_of
from ual_ray.elicit.known import find_known
from ual_ray.elicit.replies import asked_with, missing_of, request_key
from ual_ray.elicit.scoring import RETEST_ATTEMPT, position
from ual_ray.engines import EngineSpec, template_hash_of
from ual_ray.engines.requests import Choice, Completion, Request, turns_of
from ual_ray.engines.row_store import RowStore
from ual_ray.formatting import amount

# Larger data are not read for a forecast: their first rows are looked at.
READ_AT_MOST = 100_000
EVEN_SAMPLE = 1000

# The requests about rows, and those of them that have to be sent.
Asked = tuple[list[Request], list[Request]]
SAMPLED_ROWS = 200
CHARACTERS_PER_TOKEN = 4
REPLY_BEHIND_THOUGHT = 32
NO_PRICES = "not known: set engine.price_per_million_prompt_tokens and engine.price_per_million_generated_tokens"


@dataclass(frozen=True)
class KeptReplies:
    """Where replies are kept: the folder of a run's own rows, and whom the run asks (`known.asked_of`).

    retry: rows that failed with an engine error are sent again. copy: what the folder is in, if it lasts as long as this.
    """

    folder: Path
    asked: str
    retry: bool = False
    copy: TemporaryDirectory[str] | None = None


def ask_sample(config: Config, seen: DataPeek, kept: KeptReplies) -> Asked:
    """Return the requests of a sample of the rows, with their second measurements, and those that are not answered."""
    rows = _sample(config, seen)
    own = RowStore(kept.folder, col.measured_schema(config.elicit.estimators))
    files = [file for file in own.files() if not (kept.retry and file.parent == own.failed)]
    unsent = set(own.missing(pa.chunked_array([[row[col.ID] for row in rows]], pa.string()), files).to_pylist())
    spec = EngineSpec(config.engine, config.elicit.model, config.elicit.adapter, config.trust_remote_code)
    whom, known = asked_with(kept.asked, template_hash_of(spec)), find_known(kept.folder, kept.asked)
    estimators = make_estimators(config.elicit, config.seed)
    everything: list[Request] = []
    missing: list[Request] = []
    for row in rows:
        for attempt in (0, RETEST_ATTEMPT) if position(row[col.ID]) < config.elicit.retest_share else (0,):
            requests = requests_of(estimators, row[col.MESSAGES], attempt)
            everything += requests
            if row[col.ID] in unsent:
                keys = {request: request_key(whom, request, retest=attempt > 0) for request in requests}
                found = known(set(keys.values()))
                missing += [part for request, key in keys.items() for part in missing_of(request, found.get(key, ()))]
    return everything, missing


def _sample(config: Config, seen: DataPeek) -> list[dict[str, Any]]:
    """Take rows that will be scored, evenly where the data are not too large to be read."""
    stream = usable_rows(config.data, seen.pieces, seen.format_name)
    scored = (row for row in stream if row[col.SPLIT] in config.elicit.splits)
    total = seen.estimated_rows
    step = max(1, total // EVEN_SAMPLE) if total is not None and total <= READ_AT_MOST else None
    return list(islice(scored, EVEN_SAMPLE) if step is None else islice(scored, 0, None, step))


@dataclass(frozen=True)
class Forecast:
    """Totals over all rows that will be scored; tokens of prompts are estimated, generated ones are the most.

    answered: calls that are not in `calls`, as their replies are kept; None where no store was looked at.
    """

    rows: int
    calls: int
    prompt_tokens: int
    generated_tokens: int
    money: float
    answered: int | None = None

    def lines(self) -> list[tuple[str, str]]:
        """Write the totals, a name and a text each."""
        known = (
            () if self.answered is None else (f"{self.answered:,} of {self.calls + self.answered:,} calls already answered",)
        )
        return [
            ("rows", f"{self.rows:,}"),
            ("calls", f"about {self.calls:,}"),
            *(("", text) for text in known),
            ("prompt tokens", f"about {amount(self.prompt_tokens)} ({CHARACTERS_PER_TOKEN} characters each)"),
            ("generated tokens", f"at most {amount(self.generated_tokens)}"),
            ("cost", f"at most {self.money:,.2f}" if self.money else NO_PRICES),
        ]


def forecast(config: Config, seen: DataPeek, rows: int | None, asked: Asked | None = None) -> Forecast:
    """Estimate from the first rows of the data. `rows`: how many will be scored; None = unknown, then those that were seen.

    asked: the requests of a sample of the rows, and those of them that are not answered yet.
    """
    good = [messages for _, messages in seen.records if not isinstance(messages, BadRow)][:SAMPLED_ROWS]
    estimators = make_estimators(config.elicit, config.seed)
    remote = config.engine.remote
    costs = _total([request for messages in good for request in requests_of(estimators, messages)], remote)
    total = len(seen.records) if rows is None else rows
    each = (1 + config.elicit.retest_share) / len(good)
    left = [1.0] * len(costs)
    if asked is not None:
        left = [part / whole if whole else 0.0 for whole, part in zip(*(_total(part, remote) for part in asked), strict=True)]
    checked = config.elicit.self_check
    whole = round((total + checked) * each * costs[0])
    calls, read, written = (round((total * share + checked) * each * cost) for share, cost in zip(left, costs, strict=True))
    answered = None if asked is None else whole - calls
    return Forecast(total, calls, read, written, config.engine.cost(read, written), answered)


def _total(requests: Sequence[Request], remote: bool) -> list[float]:
    """Add calls, prompt tokens and generated tokens. remote: a server is asked."""
    return [sum(part) for part in zip(*(_cost(request, remote) for request in requests), strict=True)] or [0, 0, 0]


def _cost(request: Request, remote: bool) -> tuple[int, float, int]:
    """Estimate calls, prompt tokens and generated tokens of a request."""
    prompt = sum(len(turn[1]) for turn in turns_of(request)) / CHARACTERS_PER_TOKEN
    if isinstance(request, Choice):
        thought = request.thinking + REPLY_BEHIND_THOUGHT if request.thinking else 0
        if remote:
            return 1, prompt, thought or 1
        # In process, numbers are read digit by digit: one token behind each beginning, after the thought.
        beginnings = len({choice[:end] for choice in request.choices for end in range(len(choice))})
        calls = beginnings + bool(thought)
        return calls, calls * prompt + beginnings * thought, beginnings + thought
    if isinstance(request, Completion):
        return 1, prompt, request.n * (request.max_tokens + request.thinking)
    return 1, prompt, 0
