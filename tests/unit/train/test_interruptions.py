"""The stop file and the warning of Ray: one rank votes, all ranks decide alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.train import progress as module
from ual_ray.train.progress import STOP_FILE, Interruptions


def test_the_stop_file_is_seen_by_the_rank_that_votes(tmp_path: Path) -> None:
    voter, other = (Interruptions(tmp_path, lambda: False, votes=votes) for votes in (True, False))
    assert voter.votes() == other.votes() == (0.0, 0.0)
    (tmp_path / STOP_FILE).touch()
    assert (voter.votes(), other.votes()) == ((1.0, 0.0), (0.0, 0.0))
    assert voter.decide([1.0, 0.0]) == other.decide([1.0, 0.0]) == (True, False)


def test_a_node_that_goes_is_saved_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def preempted() -> bool:
        asked.append(True)
        return len(asked) > 1

    monkeypatch.setattr(module, "PREEMPTION_INTERVAL", -1.0)
    one = Interruptions(tmp_path, preempted, votes=True)
    assert one.votes() == (0.0, 1.0)
    assert [one.decide([0.0, ask]) for ask in (0.0, 1.0, 1.0, 1.0)] == [
        (False, False),
        (False, False),
        (False, True),
        (False, False),
    ]
    assert len(asked) == 2, "it is asked only when the ranks agreed to, and not again after"


def test_ranks_ask_seldom(tmp_path: Path) -> None:
    assert Interruptions(tmp_path, lambda: True, votes=True).votes() == (0.0, 0.0)
