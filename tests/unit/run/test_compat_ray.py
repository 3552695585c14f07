"""Ray tells where its address "auto" leads, without connecting."""

from __future__ import annotations

import pytest
from ray._private import services

from ual_ray.run.compat_ray import where_auto_leads


def test_it_leads_to_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert where_auto_leads() == "10.0.0.7:6379"


def test_it_leads_to_what_the_last_cluster_left_dead_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "10.0.0.8:6379")
    assert where_auto_leads() == "10.0.0.8:6379"
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    assert where_auto_leads() == ""
