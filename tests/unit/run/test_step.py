"""The lines of a run: what users wrote is printed as it is."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from ual_ray.config import Config
from ual_ray.errors import UserError
from ual_ray.formatting import count_list
from ual_ray.run import StageName
from ual_ray.run.stage_cache import FORGOTTEN_FILE
from ual_ray.run.step import Place, Session, Step, run_step


@pytest.mark.parametrize("text", ["reddit[/r/askscience]", "[red]x", "[/]", "a [link=b]c", "\\[x]"])
def test_users_text_is_no_markup(text: str) -> None:
    out = io.StringIO()
    session = cast(Session, SimpleNamespace(console=Console(file=out, width=200)))
    Session.say(session, "elicit", f"3 {text}", note="(1 s)")
    Session.say(session, text, "x", style="red")
    assert out.getvalue().splitlines()[0].split() == f"elicit 3 {text} (1 s)".split()


def test_long_lists_are_cut() -> None:
    counts: dict[str, Any] = {f"https://example.org/{'x' * 200}/{n}": 1 for n in range(200)}
    assert len(count_list(counts)) < 2000 and count_list(counts).endswith("and 180 others")
    assert count_list({"a": 1, "b": 2}) == "1 a, 2 b"


@pytest.mark.parametrize("stage", ["elicit", "train", "evaluate", "judge"])
def test_a_dead_cluster_of_the_environment_is_named_and_refused_whatever_the_stage(
    stage: StageName, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    out = io.StringIO()
    session = Session(Config(), Console(file=out, width=200), None, stages=frozenset({stage}))
    with pytest.raises(UserError, match=f"(?s)unreachable.*got: {address}: "):
        session.connect()
    assert f"the environment variable RAY_ADDRESS is used: {address}" in out.getvalue()


@pytest.mark.parametrize("force", [False, True])
def test_a_forced_step_forgets_its_rows_and_leaves_a_mark(force: bool, tmp_path: Path) -> None:
    store = tmp_path / "store" / "key"
    (store / "finished").mkdir(parents=True)
    (store / "finished" / "rows.parquet").write_text("")
    (store / "asked.json").write_text("")
    session = Session(Config(), Console(file=io.StringIO()), None, frozenset[StageName]({"elicit"} if force else ()))
    step = Step("elicit", "elicit", {}, Place(tmp_path), store=[store, tmp_path / "store" / "none"])
    run_step(session, step, lambda folder: {}, lambda metrics: "done")
    names = {file.name for file in (tmp_path / "store").rglob("*")}
    assert names == ({"key", FORGOTTEN_FILE} if force else {"key", "finished", "rows.parquet", "asked.json"})
