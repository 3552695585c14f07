"""Where the time goes, by a clock that is set; what ranks tell each other, by the sum of their vectors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from training_metrics import without_clock

from ual_ray.train import timing
from ual_ray.train.timing import RankReport, Stopwatch, summary

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Put a clock in place that stands still until it is set."""
    state = SimpleNamespace(now=100.0, worked=5.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: state.now, thread_time=lambda: state.worked))
    return state


def test_time_is_counted_by_purpose_and_lap(clock: SimpleNamespace) -> None:
    watch = Stopwatch()
    for purpose, seconds in (("data", 1.0), ("step", 6.0), ("step", 2.0), ("validation", 0.5)):
        with watch(purpose):  # type: ignore[arg-type]
            clock.now += seconds
            clock.worked += seconds / 2
    clock.now += 0.5  # for nothing of these
    assert watch.work == 1.0
    expected = {"seconds/data": 1.0, "seconds/step": 8.0, "seconds/validation": 0.5, "seconds/checkpoint": 0.0}
    assert watch.lap() == {"goodput": 0.8, "seconds/total": 10.0, **expected}
    with watch("checkpoint"):
        clock.now += 4.0
    assert watch.lap() == {"goodput": 0.0, "seconds/total": 4.0, **dict.fromkeys(expected, 0.0), "seconds/checkpoint": 4.0}


def test_a_step_that_fails_is_counted(clock: SimpleNamespace) -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no number"), watch("step"):
        clock.now += 2.0
        raise ValueError("no number")
    assert watch.lap()["seconds/step"] == 2.0


def test_the_sum_over_ranks_holds_what_each_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(timing, "peak_memory", lambda device: next(memory))
    reports = [RankReport(rank, 3, CPU) for rank in range(3)]
    vectors = [report.values(work) for report, work in zip(reports, (4.0, 5.0, 9.0), strict=True)]
    summed = [sum(places) for places in zip(*vectors, strict=True)]
    found = reports[1].metrics(summed)
    assert found == {"peak_memory_gib": 3.0, "lowest_rank_peak_memory_gib": 1.0, "slowest_rank_over_median": 9 / 5}


def test_the_work_of_gpus_is_not_judged_by_their_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "peak_memory", lambda device: 1.0)
    report = RankReport(0, 1, torch.device("cuda"))
    assert "slowest_rank_over_median" not in report.metrics(report.values(7.0))
    first = RankReport(0, 1, CPU)
    assert "slowest_rank_over_median" not in first.metrics(first.values(0.0)), "before the first step there is none"


def line(total: float, step: float, memory: float, slowest: float | None = None) -> dict[str, float]:
    seconds = {f"seconds/{purpose}": 0.0 for purpose in timing.PURPOSES} | {"seconds/total": total, "seconds/step": step}
    more = {} if slowest is None else {"slowest_rank_over_median": slowest}
    return {"step": 1.0, **seconds, "peak_memory_gib": memory, "lowest_rank_peak_memory_gib": memory / 2, **more}


def test_a_training_is_summarized_over_its_time_not_its_steps() -> None:
    lines = [{"step": 0.0, "validation_nll": 1.0}, line(1.0, 1.0, 2.0), line(9.0, 4.0, 6.0, 1.5), line(10.0, 5.0, 6.0, 1.1)]
    found = summary(lines)
    assert found["goodput"] == found["time_share/step"] == 0.5
    assert (found["peak_memory_gib"], found["lowest_rank_peak_memory_gib"]) == (6.0, 3.0)
    assert found["slowest_rank_over_median"] == pytest.approx(1.3)
    assert summary(lines[:1]) == {}


def test_what_the_clock_says_is_left_out_of_comparisons() -> None:
    assert without_clock({"nll": 1.0, "mfu": 0.5, "tokens_per_second": 9.0, **line(1.0, 1.0, 2.0, 1.0)}) == {
        "nll": 1.0,
        "step": 1.0,
    }
