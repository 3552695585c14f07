"""Any data is scored, and limits on rows that cannot be stop a run and lose nothing."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from elicited import FAKE, Score, alpaca, files_of, measured, newest, write

from ual_ray import columns as col

# --- every kind of data ----------------------------------------------------------------------------------------------


def test_a_folder_of_many_kinds_of_files(score: Score, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    rows = [{key: row[key] for key in ("instruction", "output")} for row in alpaca(0, 30)]
    with gzip.open(folder / "packed.jsonl.gz", "wt") as packed:
        packed.writelines(json.dumps(row) + "\n" for row in rows[:10])
    with (folder / "table.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["instruction", "output"])
        writer.writeheader()
        writer.writerows(rows[10:20])
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows[20:]), folder / "below" / "columns.parquet")
    (folder / "README.md").write_text("not data")
    done = score(folder, tmp_path / "out")
    assert done.figures["sources"] == {"packed": 10, "table": 10, "columns": 10}
    expected = [
        col.content_id([{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}])
        for row in rows
    ]
    assert sorted(row["id"] for row in done.rows) == sorted(expected)


def test_the_forms_that_data_sets_have(score: Score, tmp_path: Path) -> None:
    import datasets

    gsm8k = [{"question": f"How many is {n} + 1?", "answer": f"It is <<{n}+1>>{n + 1}.\n#### {n + 1}"} for n in range(8)]
    datasets.Dataset.from_list(gsm8k).save_to_disk(str(tmp_path / "saved"))
    sharegpt = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"Name number {n}."},
                {"from": "gpt", "value": "One."},
                {"from": "human", "value": "Another."},
                {"from": "gpt", "value": f"{n}."},
            ]
        }
        for n in range(8)
    ]
    mapped = [{"q": f"What is {n}?", "a": f"{n}", "instruction": "noise"} for n in range(8)]
    done = {
        "gsm8k": score(write(tmp_path / "gsm8k.jsonl", gsm8k), tmp_path / "out"),
        "saved": score(tmp_path / "saved", tmp_path / "out"),
        "sharegpt": score(write(tmp_path / "sharegpt.jsonl", sharegpt), tmp_path / "out"),
        "mapped": score(write(tmp_path / "mapped.jsonl", mapped), tmp_path / "out", "data.columns={instruction: q, output: a}"),
    }
    assert {name: (len(scored.rows), scored.figures["format"]) for name, scored in done.items()} == {
        "gsm8k": (8, "gsm8k"),
        "saved": (8, "gsm8k"),
        "sharegpt": (8, "sharegpt"),
        "mapped": (8, "alpaca"),
    }
    assert {row["id"] for row in done["gsm8k"].rows} == {row["id"] for row in done["saved"].rows}
    assert len(measured(done["saved"].store)) == 24, "the same rows in another form are not sent again"
    assert [message["role"] for message in done["sharegpt"].rows[0]["messages"]] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert {row["messages"][0]["content"] for row in done["mapped"].rows} == {f"What is {n}?" for n in range(8)}


# --- what cannot be scored -------------------------------------------------------------------------------------------


def test_overlong_rows_are_dropped_or_cut(score: Score, tmp_path: Path) -> None:
    rows = alpaca(0, 16)
    for row in rows[::4]:
        row["output"] = "word " * 700
    data = write(tmp_path / "rows.jsonl", rows)
    limit = ["engine.max_model_len=500", "elicit.max_quarantine_share=0.5"]
    dropped = score(data, tmp_path / "out", *limit)
    assert (dropped.figures["quarantined"], dropped.figures["truncated"]) == (4, 0)
    assert dropped.figures["reasons"] == {"overlong": 4}
    bad = [row for row in dropped.rows if row["status"] == "quarantined"]
    assert all(row["uncertainty"] is None and row["error"].startswith("overlong: 7") for row in bad) and len(bad) == 4

    cut = score(data, tmp_path / "out", *limit, "engine.overlong=truncate")
    assert (cut.figures["quarantined"], cut.figures["truncated"]) == (0, 4)
    assert [row["id"] for row in cut.rows if row["truncated"]] == [row["id"] for row in bad]
    assert all(len(row["messages"][-1]["content"]) > 3000 for row in cut.rows if row["truncated"]), "only what is sent is cut"


def test_too_many_bad_rows_stop_a_large_run_and_a_higher_share_goes_on(ual: Any, tiny_model: Path, tmp_path: Path) -> None:
    # The look at the first rows sees none of the bad ones.
    rows = alpaca(0, 2000) + [{"instruction": f"Why {n}?", "output": ""} for n in range(2000)]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    settings = ["elicit", data, *FAKE, f"elicit.model={tiny_model}", "--out", out]
    done = ual(*settings)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    message = " ".join(done.output.split())
    assert "more than data.max_bad_share = 0.05 allows" in message and "no response" in message
    (folder,) = (place for place in out.iterdir() if (place / "quarantine").is_dir())
    assert '"reason": "no response' in next((folder / "quarantine").glob("*.jsonl")).read_text()

    before = files_of(out / "store")
    done = ual(*settings, "data.max_bad_share=0.6")
    assert done.code == 0, done.output
    assert newest(out) == folder
    assert {name: time for name, time in files_of(out / "store").items() if name in before} == before
    assert len(measured(out / "store")) == 2000
    assert "2000 bad rows" in done.output


def test_too_many_rows_without_a_score_stop_a_run_and_a_higher_share_goes_on(
    ual: Any, tiny_model: Path, tmp_path: Path
) -> None:
    rows = alpaca(0, 3000)
    for row in rows[1500:]:
        row["output"] = "word " * 300
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    fake = ["engine.max_model_len=250", "engine.rows_per_block=64", "engine.arguments={seconds_per_run: 0.02}"]
    settings = ["elicit", data, *FAKE, f"elicit.model={tiny_model}", *fake, "--out", out]
    done = ual(*settings)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    message = " ".join(done.output.split())
    assert "more than elicit.max_quarantine_share = 0.2 allows" in message and "overlong" in message
    kept = measured(out / "store")
    before = files_of(out / "store")
    assert 1000 < len(kept) < 3000, "what was done is kept"

    done = ual(*settings, "elicit.max_quarantine_share=0.6")
    assert done.code == 0, done.output
    assert {name: time for name, time in files_of(out / "store").items() if name in before} == before
    sent = measured(out / "store")
    assert len(sent) == len({row["id"] for row in sent}) == 3000, "none is sent again"
    assert "1500 quarantined (1500 overlong)" in " ".join(done.output.split())
