"""What a cluster is asked for, by stage."""

from __future__ import annotations

import pytest

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.run import cluster as runtime


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("four_cores")
def test_a_stage_is_not_judged_by_what_another_needs() -> None:
    eight = load(None, ["train.gpus_per_worker=1", "train.num_workers=8"])
    assert runtime.check_cluster(eight, {"elicit"}) == []
    with pytest.raises(UserError, match=r"train.gpus_per_worker x train.num_workers = 8 GPUs, the cluster has 0"):
        runtime.check_cluster(eight, {"train"})
    engines = load(None, ["engine.gpus_per_actor=1"])
    assert runtime.check_cluster(engines, {"train"}) == []
    with pytest.raises(UserError, match="engine.gpus_per_actor x engine.min_actors = 1 GPUs"):
        runtime.check_cluster(engines, {"judge"})


@pytest.mark.usefixtures("four_cores")
def test_elastic_training_starts_with_the_least() -> None:
    assert runtime.check_cluster(load(None, ["train.num_workers=8", "train.min_workers=4"]), {"train"}) == []
    with pytest.raises(UserError, match="train.cpus_per_worker x train.min_workers = 5 CPUs"):
        runtime.check_cluster(load(None, ["train.num_workers=8", "train.min_workers=5"]), {"train"})


@pytest.mark.usefixtures("four_cores")
def test_a_cluster_that_may_grow_is_waited_for() -> None:
    config = load(None, ["train.num_workers=8", "runtime.address=auto"])
    assert runtime.check_cluster(config, {"train"}) == ["train.cpus_per_worker x train.num_workers = 8 CPUs, the cluster has 4"]
