"""The output folder of a run that nobody ran: every file that a page is made of, with made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ual_ray import columns as col
from ual_ray.report.findings import Findings
from ual_ray.stats.alignment import COLUMNS
from ual_ray.stats.comparison import Role, compare_models
from ual_ray.stats.metrics import measure
from ual_ray.stats.primary import settle

UNTRUSTED = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>{{ 7*7 }}"
ARMS = ("sft", "constant", "shuffled", "ual")
TWO_ARMS = ("sft", "ual")  # half the panels to draw
SHIFTS = {"base": 0.4, "sft": 0.02, "constant": 0.015, "shuffled": 0.01, "ual": -0.01}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def result_rows(model: str, said: str, n: int = 300) -> pa.Table:
    """Make result rows; what is shared by all models comes from one seed."""
    shared, own = np.random.default_rng(5), np.random.default_rng([5, list(SHIFTS).index(model)])
    tokens, hard, luck = shared.integers(5, 90, n), shared.gamma(4, 0.5, n), shared.random(n)
    rows = []
    for place in range(n):
        messages = [{"role": "user", "content": f"{said} {place}"}, {"role": "assistant", "content": said}]
        nll = float(tokens[place] * (hard[place] + own.normal(SHIFTS[model], 0.05)))
        source = "metamath" if place % 3 else "dolly"
        held = {"id": f"h{place}", "benchmark": "held_out", "source": source, "messages": messages}
        rows.append({**held, "nll_sum": nll, "target_tokens": int(tokens[place]), "scores": []})
        right = float(luck[place] < 0.02 - SHIFTS[model] / 50)
        scores = [("exact_match_strict", right), ("exact_match_flexible", right)]
        rows.append({"id": f"g{place}", "benchmark": "gsm8k", "source": "gsm8k", "messages": messages, "scores": scores})
    return pa.Table.from_pylist(rows, schema=col.RESULTS)


def calibration_of(tokens: int = 19_871) -> dict[str, Any]:
    def part(over: float) -> dict[str, Any]:
        sure = [(place + 0.5) / 15 for place in range(15)]
        right = [max(0.0, at - over * at) for at in sure[:-1]] + [None]
        bins = {"count": [1300] * 14 + [0], "confidence": sure, "accuracy": right}
        figures = {"ece_width": over / 2, "ece_mass": over / 2, "brier": 0.71, "accuracy": 0.41, "nll": 2.1 - over}
        return {"n": tokens, "nll_standard_error": 0.03, "reliability": bins, **figures}

    return {"temperature": 1.27, "token": {"raw": part(0.3), "scaled": part(0.05)}, "answer": {}}


ROLES: dict[str, Role] = {"base": "base", "sft": "sft", "shuffled": "control", "constant": "control", "ual": "ual"}


def training(place: Path, arm: str) -> None:
    lines = [{"step": 0, "validation_nll": 2.9}]
    for step in range(1, 401):
        loss = 1.9 + 1.0 * np.exp(-step / 80) + 0.05 * np.sin(step) + SHIFTS[arm]
        line = {"step": step, "nll": loss, "smoothed_loss": loss + 0.5}
        line |= {f"nll/uncertainty_bin_{number}": loss + 0.25 * number for number in range(1, 5)}
        lines.append(line | ({"validation_nll": loss + 0.1} if step % 100 == 0 else {}))
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 401, "nl')
    done = {"steps": 400, "train_rows": 700, "dropped_rows": 0, "median_tokens_per_second": 812.0}
    write(place / "done.json", {"figures": done | {"uncertainty_bin_edges": [0.1, 0.3, 0.5, 0.7, 0.95]}, "seconds": 100.0})
    write(place / "started.json", {"digest": "t" * 16, "inputs": {}})


def smoothing(place: Path, arm: str) -> None:
    place.mkdir(parents=True)
    random = np.random.default_rng(1)
    alpha = np.clip(random.gamma(4, 0.025, 700), 0, 0.4) if arm in ("ual", "shuffled") else np.full(700, 0.1 * (arm != "sft"))
    pa.parquet.write_table(pa.table({"alpha": alpha}), place / "smoothed.parquet")
    summary = {"map": {"ual": "mean_matched", "sft": "none"}.get(arm, arm), "missing": 3, "rows": 700.0, "excluded": 0.0}
    summary |= {
        "mean": alpha.mean(),
        "std": alpha.std(),
        "min": alpha.min(),
        "median": float(np.median(alpha)),
        "max": alpha.max(),
        "rank_correlation": {"ual": 1.0, "shuffled": 0.02}.get(arm),
    }
    write(place / "done.json", {"figures": summary, "seconds": 0.1})
    write(place / "started.json", {"digest": "a" * 16, "inputs": {}})


def elicitation(place: Path, said: str) -> None:
    random = np.random.default_rng(2)
    counts = {
        name: np.histogram(random.beta(*shape, n), 20, (0, 1))[0].tolist()
        for name, shape, n in ((f"metamath {said}", (2, 6), 470), ("dolly", (5, 3), 227))
    }
    found = {
        "total_rows": 1000,
        "duplicates": 12,
        "splits": {"train": 700, "validation": 100, "test": 200},
        "format": "messages",
        "sources": {f"metamath {said}": 660, "dolly": 340},
        "bad": 2,
        "bad_reasons": {f"no response {said}": 2},
        "rows": 700,
        "quarantined": 3,
        "reasons": {f"overlong {said}": 3},
        "histograms": counts,
        "mean_uncertainty": {"verbalized_error": 0.41, "p_true": None},
        "calls": 2134,
        "prompt_tokens": 123456,
        "generated_tokens": 2000,
        "uncertainty": "verbalized_error",
        "warnings": {"p_true": [f"p_true: half of the scores are equal {said}"]},
        "self_check": {
            "rows": 64,
            "swapped": 13,
            "estimators": {
                "verbalized_error": dict(
                    n=64, wrong=13, left_out=0, auroc=0.71, auroc_error=0.05, prr=0.3, auroc_low=0.56, auroc_high=0.83
                )
            },
        },
    }
    write(place / "done.json", {"figures": found, "seconds": 312.0})
    write(place / "started.json", {"digest": "e" * 16, "inputs": {"elicit": {"uncertainty": "verbalized_error"}}})


def rate(value: float) -> dict[str, Any]:
    ends = {
        f"{name}_{end}": value + shift
        for name in ("win_rate", "length_controlled")
        for end, shift in (("low", -6), ("high", 6))
    }
    rates = {"win_rate": value, "length_controlled_win_rate": value - 2, "n": 120, "n_valid": 117, "longer": 0.5}
    return rates | ends | {"mean_length_candidate": 512.0, "mean_length_reference": 498.0}


def points() -> dict[str, Any]:
    random = np.random.default_rng(3)
    classes = np.repeat(np.arange(4), 25)
    return {
        "texts": np.array([" the", "\n", "$1", "_x"]),
        "classes": classes,
        "pca": random.normal(size=(100, 2)) + classes[:, None],
        "mueller": random.normal(size=(75, 2)) + classes[:75, None],
        "mueller_classes": classes[:75],
        "mueller_templates": np.array([[0.0, 0], [1, 0], [0, 1]]),
    }


def tokens_of(table: pa.Table) -> pa.Table:
    """Make token statistics whose adjusted NLL is the row's own."""
    rows = [row for row in table.to_pylist() if row["benchmark"] == "held_out"]
    tokens = [{"id": row["id"], "adjusted_nll": row["nll_sum"] / row["target_tokens"]} for row in rows]
    return pa.Table.from_pylist(tokens, schema=col.TOKEN_STATISTICS)


def made_up_run(root: Path, said: str = "What is 2 + 2?", arms: tuple[str, ...] = ARMS, n: int = 300) -> Path:
    """Write a run's folder with every part, as the stages leave it."""
    elicitation(root / "elicit" / "e1", said)
    (root / "elicit" / "newest").write_text("e1")
    names = {"base": "base"} | {arm: f"arms/{arm}" for arm in arms}
    tables, folders = {}, {"evaluated": {}, "calibrated": {}, "judged": {"ual-vs-sft": ["judge/ual-vs-sft/j1"]}}
    for model, place in names.items():
        if model != "base":
            smoothing(root / place / "smooth" / "s1", model)
            training(root / place / "train" / "t1", model)
        tables[model] = result_rows(model, said, n)
        folder = root / place / "evaluate" / "v1" / "results"
        folder.mkdir(parents=True)
        pa.parquet.write_table(tables[model], folder / "results.parquet")
        write(folder.parent / "started.json", {"digest": "v" * 16, "inputs": {}})
        folders["evaluated"][model] = [f"{place}/evaluate/v1"]
        folders["calibrated"][model] = [f"{place}/calibrate/c1"]
        (root / place / "calibrate" / "c1").mkdir(parents=True)
        np.savez(root / place / "calibrate" / "c1" / "clusters.npz", **points())
    roles = {model: ROLES[model] for model in tables}
    judged: dict[str, Any] = {"candidate": "ual", "reference": "sft", "win_rates": {"overall": rate(53.4)}, "judge": "big"}
    judged |= {
        "others": {"small": judged | {"judge": "small"}},
        "agreement": {"big and small": {"n": 291, "share": 0.812, "kappa": 0.604}},
    }
    findings = Findings(
        {model: measure(table) for model, table in tables.items()},
        settle(
            compare_models(
                {model: dict.fromkeys(range(8), table.select(COLUMNS)) for model, table in tables.items()},
                roles,
                {model: dict.fromkeys(range(8), tokens_of(table)) for model, table in tables.items()},
                resamples=400,
            ),
            roles,
        )[0],
        roles,
        alphas={arm: 0.1 * (arm != "sft") for arm in arms},
        seeds=dict.fromkeys(names, 1),
        calibration={model: calibration_of() for model in names},
        clusters={model: {"after_norm": {"n": 100, "nc1": 2.5, "silhouette": 0.1, "scatter_ratio": 0.8}} for model in names},
        win_rates={"ual": judged},
        folders=folders,
    )
    write(root / "report" / "findings.json", findings.as_dict())
    (root / "config.yaml").write_text(
        f"data:\n  path: {json.dumps('rows.jsonl ' + said)}\nmodel: SmolLM2-135M\narms:\n"
        + "".join(f"  {arm}: {{}}\n" for arm in arms)
    )
    return root
