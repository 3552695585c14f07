"""The elicitor's replies on the page of an inspection: read from the store, shortened, and never markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scored_rows import folder_of, many

from ual_ray import columns as col
from ual_ray.elicit.replies import Kept, keep
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Likelihood, LikelihoodResult
from ual_ray.inspect.measure import LONGEST_REPLY, inspect, replies_of
from ual_ray.inspect.page import to_html
from ual_ray.inspect.summary import Reply
from ual_ray.parquet import write_rows

ASK = (("user", "q"),)
HOSTILE = "</p><script>alert(1)</script>{{ 7*7 }} [/b]"


def entries(*texts: str) -> list[Kept | None]:
    sampled = CompletionResult(texts, 1, 1, finish_reasons=("stop",))
    return [
        keep(1, Choice(ASK, ("A", "B")), ChoiceResult((-3.0, -0.05), 1), ["p_true"]),
        keep(2, Likelihood(ASK), LikelihoodResult(12.5, 4, 1), ["nll", "nll_sum"]),
        keep(3, Completion(ASK, 9, n=len(texts)), sampled, ["self_consistency"]),
    ]


def stored(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """Write rows into a store, and name it in the figures of the scores next to it."""
    write = folder / "store/key/finished"
    write.mkdir(parents=True)
    write_rows(rows, schema or pa.schema(col.fields(col.ID, col.REPLIES)), write / "a.parquet")
    (folder / "done.json").write_text(json.dumps({"figures": {"store": "store/key"}, "seconds": 1}))
    return folder / "scored"


def test_each_kind_of_reply_is_shown(tmp_path: Path) -> None:
    scored = stored(tmp_path, [{"id": "a", "replies": entries("yes", "x" * 1000)}, {"id": "b", "replies": None}])
    assert replies_of(scored, ["a", "b", "c"]) == {
        "a": [
            Reply("p_true", ["B: 0.951, A: 0.050"], 0),
            Reply("nll, nll_sum", ["12.5 nats over 4 tokens"], 0),
            Reply("self_consistency", ["yes [stop]", "x" * (LONGEST_REPLY - 1) + "… [unknown end]"], 0),
        ]
    }
    many_texts = [{"id": "a", "replies": entries(*map(str, range(20)))}]
    (tmp_path / "more").mkdir()
    (*_, reply) = replies_of(stored(tmp_path / "more", many_texts), ["a"])["a"]
    assert (len(reply.texts), reply.hidden) == (8, 12)


@pytest.mark.slow
def test_replies_are_escaped(tmp_path: Path, read_page: Any) -> None:
    rows = many(30)
    folder_of(tmp_path, rows)
    page = to_html(inspect(stored(tmp_path, [{"id": row["id"], "replies": entries(HOSTILE)} for row in rows])))
    read_page(page)
    assert "Replies of the elicitor" in page and HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7*7 }} [/b] [stop]" in page


@pytest.mark.parametrize("done", [None, {}, {"figures": {}}, {"figures": {"store": "gone"}}])
@pytest.mark.slow
def test_without_a_store_nothing_is_shown(done: Any, tmp_path: Path) -> None:
    if done is not None:
        (tmp_path / "done.json").write_text(json.dumps(done))
    assert replies_of(tmp_path / "scored", ["a"]) == {}
    assert "Replies of the elicitor" not in to_html(inspect(folder_of(tmp_path, many(30))))


def test_a_store_of_an_earlier_version_has_no_replies(tmp_path: Path) -> None:
    assert replies_of(stored(tmp_path, [{"id": "a"}], pa.schema(col.fields(col.ID))), ["a"]) == {}
