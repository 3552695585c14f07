"""Models that are registered once, and the champion among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracked import Network, tracker_of

from ual_ray.errors import UserError
from ual_ray.tracking.models import CANDIDATE, CHAMPION, _card, champion_of
from ual_ray.tracking.tracker import default_uri


def test_the_champion_is_the_run_s_own_version(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    client = tracker.client
    client.create_registered_model("ual-ual")
    with tracker.run("train ual", tmp_path / "one", {}) as one, tracker.run("train ual 2", tmp_path / "two", {}) as two:
        for run in (one, one, two):
            client.create_model_version("ual-ual", str(tmp_path), run_id=run.id)
    uri = default_uri(tmp_path)
    assert champion_of(uri, "ual-ual", None, one.id, {"ual_ray.promoted_by": "a reason"}) == "2"
    champion = client.get_model_version_by_alias("ual-ual", CHAMPION)
    assert (str(champion.version), champion.tags["ual_ray.promoted_by"]) == ("2", "a reason")
    assert champion_of(uri, "ual-ual", "3", None, {}) == "3"
    assert str(client.get_model_version_by_alias("ual-ual", CHAMPION).version) == "3"
    for version, run_id in ((None, "no such run"), ("9", one.id), (None, None)):
        with pytest.raises(UserError, match="no registered version"):
            champion_of(uri, "ual-ual", version, run_id, {})


def test_a_model_is_registered_once_whatever_the_network_does(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ual_ray.tracking.models._upload", lambda client, run_id, folder: "m-1")
    sources: list[str] = []

    def create(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, source: str, **more: Any) -> Any:
            sources.append(source)
            return real(name, str(tmp_path), **{**more, "model_id": None})

        return call

    tracker = tracker_of(tmp_path)
    client = tracker.client
    monkeypatch.setattr(client, "create_model_version", create(client.create_model_version))
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\ntags: [a]\n---\n# A card\n")
    with tracker.run("train", tmp_path, {}) as run:
        network.loses_answers = True
        assert run.model(model, "ual-sft", {"ual_ray.arm": "sft"}) is None
        network.away = network.loses_answers = False
    assert tracker.close(30) == 0
    assert network.applied.count("model") == 2 and sources == ["models:/m-1"]
    version = client.get_model_version_by_alias("ual-sft", CANDIDATE)
    assert (version.description, version.tags["ual_ray.arm"], version.run_id) == ("# A card", "sft", run.id)


def test_a_long_card_is_cut_to_what_a_database_holds(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x" * 9000)
    card = _card(tmp_path) or ""
    assert len(card) == 5000 and card.endswith("x…")
    assert _card(tmp_path / "nothing") is None
