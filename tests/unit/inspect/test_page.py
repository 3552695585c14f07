"""The page: self-contained, escaped whatever the rows say, and honest about what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col
from ual_ray.config import EngineConfig
from ual_ray.formatting import duration
from ual_ray.inspect.measure import inspect
from ual_ray.inspect.page import money, tint, to_html
from ual_ray.stats.score_quality import Quality

UNTRUSTED = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>{{ 7*7 }}"


def rows_of(n: int, **values: Any) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "id": f"{place:04}",
            "source": "ab"[place % 2],
            "split": "train",
            "messages": [{"role": "user", "content": f"question {place}"}, {"role": "assistant", "content": "answer"}],
            "uncertainty_verbalized_error": (score := float(random.random())),
            "uncertainty_p_true": score**2,
            "retest_verbalized_error": score,
            "uncertainty": score,
            "response_length": place,
            "status": "ok",
            "elicitor": "model",
            "prompt_hash": "0123",
            "prompt_tokens": 100,
            "generated_tokens": 1,
            "calls": 1,
            **values,
        }
        for place in range(n)
    ]


def page_of(
    folder: Path, rows: list[dict[str, Any]], estimators: tuple[str, ...] = ("verbalized_error", "p_true"), **options: Any
) -> str:
    scored = folder / "scored"
    scored.mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=col.scored_schema(estimators)), scored / "part.parquet")
    return to_html(inspect(scored, **options))


def labels_of(folder: Path, n: int) -> Path:
    path = folder / "labels.csv"
    path.write_text("id,correct\n" + "".join(f"{place:04},{place % 3 and 1}\n" for place in range(n)))
    return path


@pytest.mark.slow
def test_the_self_check_has_a_section(tmp_path: Path, read_page: Any) -> None:
    found = asdict(Quality(20, 4, 1, 0.875, None, None, auroc_low=0.625, auroc_high=0.96875))
    check = {"rows": 21, "swapped": 4, "estimators": {UNTRUSTED: found}, "uncertainty": "nll", "reason": "as configured"}
    (tmp_path / "self_check.json").write_text(json.dumps(check))
    page = page_of(tmp_path, rows_of(40))
    assert "Self-check" in page and "<td>0.88</td><td>0.62 to 0.97</td>" in page
    read_page(page)
    assert UNTRUSTED not in page


@pytest.mark.slow
def test_a_whole_page_in_order(tmp_path: Path, read_page: Any) -> None:
    page = page_of(
        tmp_path, rows_of(60), labels=labels_of(tmp_path, 60), engine=EngineConfig(price_per_million_prompt_tokens=1.0)
    )
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert heads[-9:] == [
        "Score distribution",
        "Estimators",
        "Agreement of estimators",
        "Correlation with response length",
        "Retest reliability",
        "Detection of wrong responses",
        "Most and least uncertain rows",
        "Rows and cost",
        "Glossary",
    ]
    assert re.fullmatch(r"\d warnings", heads[0])
    assert page.count('<svg viewBox="') == 4
    text = read_page(page).text
    assert "question 7" in text or "question 8" in text
    assert "Detection of" not in to_html(inspect(tmp_path / "scored"))


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(tmp_path: Path, read_page: Any) -> None:
    page = page_of(tmp_path, rows_of(40))
    found = read_page(page)
    assert {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
    assert not [name for _, attributes in found.tags for name in attributes if name == "src" or name.startswith("on")]
    assert all(value.startswith("#") for _, attributes in found.tags for name, value in attributes.items() if name == "href")
    assert (
        set(re.findall(r"url\((.)", page)) == {"#"}
        and "@import" not in page
        and "http://" not in page
        and "https://" not in page
    )
    policy = next(attributes for tag, attributes in found.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.slow
def test_untrusted_rows_stay_text(tmp_path: Path, read_page: Any) -> None:
    said = [{"role": UNTRUSTED, "content": UNTRUSTED}, {"role": "assistant", "content": UNTRUSTED}]
    values = {"source": UNTRUSTED, "given_id": UNTRUSTED, "messages": said, "elicitor": UNTRUSTED, "prompt_hash": UNTRUSTED}
    rows = rows_of(40, **values)
    rows[0] |= {"id": UNTRUSTED}
    rows[1] |= {"uncertainty": None, "status": "quarantined", "error": UNTRUSTED, "source": "other"}
    # The error's colon ends its reason: the source of this one has none.
    page = page_of(tmp_path, rows)
    found = read_page(page)
    assert {tag for tag, _ in found.tags} & {"script", "img"} == set()
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in found.text and "{{ 7*7 }}" in found.text


@pytest.mark.slow
def test_untrusted_estimators_stay_text(tmp_path: Path, read_page: Any) -> None:
    page = page_of(tmp_path, rows_of(40, **{f"uncertainty_{UNTRUSTED}": 0.5}), estimators=(UNTRUSTED, "verbalized_error"))
    assert {tag for tag, _ in read_page(page).tags} & {"script", "img"} == set()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"uncertainty": None, "uncertainty_verbalized_error": None, "status": "quarantined"},
        {"uncertainty": 0.5, "uncertainty_verbalized_error": 0.5, "retest_verbalized_error": 0.5, "uncertainty_p_true": None},
        {"prompt_tokens": None, "generated_tokens": None, "calls": None, "elicitor": None, "messages": []},
    ],
)
@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.slow
def test_missing_values_are_dashes(tmp_path: Path, values: dict[str, Any], n: int, read_page: Any) -> None:
    page = page_of(tmp_path, rows_of(n, **values), labels=labels_of(tmp_path, n))
    text = read_page(page).text
    assert not re.search(r"\b(nan|NaN|None|inf|null)\b", text)
    assert "–" in text


@pytest.mark.slow
def test_a_sole_estimator_has_no_matrix(tmp_path: Path) -> None:
    assert "Agreement of" not in page_of(tmp_path, rows_of(5), estimators=("verbalized_error",))


def test_small_parts() -> None:
    assert [tint(None), tint(-0.31), tint(0.96)] == ["none", "minus t3", "plus t10"]
    assert [duration(None), duration(1.26), duration(125), duration(7322)] == ["–", "1.3 s", "2 min 5 s", "2 h 2 min"]
    assert [money(None), money(0.0123), money(12.345)] == ["–", "0.0123", "12.35"]
