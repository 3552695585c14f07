"""Outputs and a shared store at s3:// URIs, against moto's server.

Outputs are equal to local ones, continued on another machine, refused within seconds; of what a store has nothing is asked.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet
import pytest
from processes import below, end, free_port, wait_until
from pyarrow.fs import FileSelector, FileSystem, FileType

from ual_ray import columns as col
from ual_ray.mirror.output import local_input
from ual_ray.parquet import file_digest, read_table

SECRET = "a-secret-of-this-test"  # noqa: S105
ROWS_PER_BLOCK = 4


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve an empty bucket, named by its URI; the environment leads there."""
    port = free_port()
    # A process of its own: vLLM looks at everything in its process, and Flask's proxies raise when they are looked at.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "UAL_CACHE": str(tmp_path_factory.mktemp("machine")),
    }
    try:
        wait_until(lambda: answers(port), "moto answers")
        with mock.patch.dict(os.environ, variables):
            FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")[0].create_dir("bucket")
            yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def files_at(uri: str) -> dict[str, int]:
    """Sizes of all files at a URI."""
    filesystem, root = FileSystem.from_uri(uri)
    found = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{root}/"): info.size for info in found if info.type == FileType.File}


def file_at(uri: str, name: str, folder: Path) -> Path:
    """Fetch one file."""
    filesystem, root = FileSystem.from_uri(uri)
    local = folder / Path(name).name
    with filesystem.open_input_stream(f"{root}/{name}") as stream:
        local.write_bytes(stream.read())
    return local


def one(found: Any) -> Any:
    (only,) = found
    return only


def results(output: Path) -> dict[str, Any]:
    """What a run is compared by: scores, alphas, and answers to the benchmarks."""
    scored = read_table(one(output.glob("elicit/*/scored"))).select([col.ID, col.UNCERTAINTY])
    alphas = read_table(one(output.glob("arms/ual/smooth/*/smoothed.parquet"))).select([col.ID, col.ALPHA])
    answers = read_table(one(output.glob("arms/ual/evaluate/*/results")))
    return {"scored": scored.to_pylist(), "alphas": alphas.to_pylist(), "answers": len(answers)}


def test_a_run_equals_a_local_one_and_is_continued_on_another_machine(
    ual: Any, bucket: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "one_arm.yaml"
    config.write_text("arms: {ual: {map: mean_matched}}\nevaluate: {calibration: {enabled: false}}\n")
    log = tmp_path / "sent.jsonl"
    command = ["run", "-c", config, *small, "train.num_workers=1", f"engine.arguments.log={log}"]
    uri = f"{bucket}/runs/first"
    local = ual(*command, f"output={tmp_path / 'local'}")
    assert local.code == 0, local.output
    asked = len(log.read_text().splitlines())
    first = ual(*command, f"output={uri}")
    assert first.code == 0, first.output
    assert f"{uri}/report/report.md" in first.output and SECRET not in first.output
    sent = len(log.read_text().splitlines())
    assert sent == 2 * asked

    there = files_at(uri)
    assert {"config.yaml", "owner.json", "mlflow.db", "ual.log", "report/report.md"} <= there.keys()
    assert not [name for name in there if name.endswith((".part", ".lock"))]
    expected = results(tmp_path / "local")
    assert len({row[col.ALPHA] for row in expected["alphas"]}) > 1
    assert results(local_input(uri, "x")) == expected
    model = one(tmp_path.glob("local/arms/ual/train/*/model/model.safetensors"))
    name = one(name for name in there if name.endswith("train/" + "/".join(model.parts[-3:])))
    assert file_digest(file_at(uri, name, tmp_path)) == file_digest(model)

    monkeypatch.setenv("UAL_CACHE", str(tmp_path / "another machine"))
    again = ual(*command, f"output={uri}")
    assert again.code == 0, again.output
    assert again.output.count("(cached)") == len(re.findall(r"\(\d+ s\)", local.output)) > 4, again.output
    assert len(log.read_text().splitlines()) == sent
    assert "operations failed" not in again.output

    looked = ual("inspect", uri, "--html", tmp_path / "page.html")
    assert looked.code == 0 and (tmp_path / "page.html").is_file(), looked.output
    smoothed = ual("smooth", f"{uri}/elicit", "--arm", "ual", "--out", f"{bucket}/smoothed")
    assert smoothed.code == 0 and "smoothed.parquet" in files_at(f"{bucket}/smoothed"), smoothed.output
    reported = ual("report", uri, "--out", f"{bucket}/reported")
    assert reported.code == 0 and "report.md" in files_at(f"{bucket}/reported"), reported.output


def test_after_a_kill_another_machine_asks_for_no_row_again_whose_file_was_copied(
    ual: Any, bucket: str, small: list[str], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, log = f"{bucket}/killed", tmp_path / "sent.jsonl"
    settings = [setting for setting in small if not setting.startswith(("data.path", "train."))]
    blocks = [f"engine.{key}={ROWS_PER_BLOCK}" for key in ("rows_per_block", "batch_size")]
    slow = ["engine.arguments.seconds_per_run=2", f"engine.arguments.log={log}", "elicit.retest_share=0"]
    # One request a row, one call a block: what is waited for is the copying.
    one_estimator = ["elicit.estimators=[nll]", "elicit.uncertainty=nll"]
    command = ["elicit", rows_file, "--out", uri, *settings, *blocks, *slow, *one_estimator]

    def finished() -> set[str]:
        filesystem, root = FileSystem.from_uri(uri)
        names = [name for name in files_at(uri) if "/checkpoint/" in name]
        files = (filesystem.open_input_file(f"{root}/{name}") for name in names)
        return {row for file in files for row in pyarrow.parquet.read_table(file)[col.ID].to_pylist()}

    process = subprocess.Popen([sys.executable, "-m", "ual_ray", *map(str, command)], start_new_session=True)
    try:
        wait_until(lambda: len(finished()) >= 3 * ROWS_PER_BLOCK, "three blocks are copied")
        used = ual(*command)
        assert used.code == 2 and "another run is working in" in used.output, used.output
        children = below(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end(children)
    finally:
        process.kill()
        process.wait()
    copied, asked = finished(), len(log.read_text().splitlines())
    monkeypatch.setenv("UAL_CACHE", str(tmp_path / "another machine"))
    started = time.monotonic()
    done = ual(*command)
    assert done.code == 0, done.output
    sent = len(log.read_text().splitlines())
    rows = read_table(one(local_input(uri, "x").glob("*/scored")))[col.ID].to_pylist()
    print(f"\n  {len(rows)} rows, {len(copied)} copied before the kill, {asked} and {sent - asked} requests, "
          f"{sent - len(rows)} again, {time.monotonic() - started:.0f} s")  # fmt: skip
    assert len(set(rows)) == len(rows) and copied < set(rows)
    assert sent - asked == len(set(rows) - copied)


def test_runs_that_share_a_store_ask_for_nothing_that_one_of_them_has_asked(
    ual: Any, bucket: str, small: list[str], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run's folder and its machine are gone; the output is a path, or a URI too."""
    store, log = f"{bucket}/shared", tmp_path / "sent.jsonl"
    settings = [setting for setting in small if not setting.startswith(("data.path", "train."))]
    settings += [f"elicit.store={store}", f"engine.arguments.log={log}"]
    command = ["elicit", rows_file, *settings]

    def sent_by(*given: object) -> int:
        before = len(log.read_text().splitlines()) if log.exists() else 0
        done = ual(*given)
        assert done.code == 0 and SECRET not in done.output, done.output
        return len(log.read_text().splitlines()) - before

    def sent(out: Path | str, *more: str) -> int:
        return sent_by(*command, *more, "--out", out)

    first = sent(tmp_path / "first", "tracking.traces=2")
    rows = read_table(one((tmp_path / "first").glob("*/scored")))
    assert first > len(rows) > 20
    written = [file for file in (tmp_path / "first").rglob("*") if file.is_file()]
    assert {"mlflow.db", "ual.log", "started.json"} <= {file.name for file in written}
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setenv("UAL_CACHE", str(tmp_path / "another machine"))
    assert sent(tmp_path / "second") == 0
    names = [name for name in rows.schema.names if name not in (col.CALLS, col.PROMPT_TOKENS, col.GENERATED_TOKENS)]
    assert read_table(one((tmp_path / "second").glob("*/scored"))).select(names).equals(rows.select(names))
    assert sent(f"{bucket}/of-a-third") == 0
    assert sent(tmp_path / "fourth", "elicit.max_quarantine_share=0.3", "data.test_share=0.5") == 0
    added = sent(tmp_path / "fifth", "elicit.estimators=[verbalized_error,p_true,nll,self_consistency]")
    assert 0 < added < first
    forecast = ual(*command, "--dry-run", "--out", tmp_path / "none")
    assert forecast.code == 0 and "about 0" in forecast.output and not (tmp_path / "none").exists(), forecast.output
    assert sent(tmp_path / "second", "--force") == first
    assert sent(tmp_path / "sixth") == sent(tmp_path / "seventh") == 0
    checked = [sent_by("inspect", tmp_path / out, "--self-check", 20, *settings) for out in ("sixth", "seventh")]
    assert checked[0] > 0 == checked[1]


def test_rows_of_a_killed_run_are_shared_and_runs_at_once_ask_for_the_others_once(
    ual: Any, bucket: str, small: list[str], rows_file: Path, tmp_path: Path
) -> None:
    store, log = f"{bucket}/shared-by-killed", tmp_path / "sent.jsonl"
    settings = [setting for setting in small if not setting.startswith(("data.path", "train."))]
    blocks = [f"engine.{key}={ROWS_PER_BLOCK}" for key in ("rows_per_block", "batch_size")]
    slow = ["engine.arguments.seconds_per_run=2", f"engine.arguments.log={log}", "elicit.retest_share=0"]
    one_estimator = ["elicit.estimators=[nll]", "elicit.uncertainty=nll", f"elicit.store={store}"]
    command = ["elicit", rows_file, *settings, *blocks, *slow, *one_estimator]

    def start(out: str) -> subprocess.Popen[bytes]:
        given = [sys.executable, "-m", "ual_ray", *map(str, command), "--out", str(tmp_path / out)]
        return subprocess.Popen(given, start_new_session=True)

    def shared() -> set[str]:
        filesystem, root = FileSystem.from_uri(store)
        names = [name for name in files_at(store) if "/checkpoint/" in name]
        files = (filesystem.open_input_file(f"{root}/{name}") for name in names)
        return {row for file in files for row in pyarrow.parquet.read_table(file)[col.ID].to_pylist()}

    def rows(out: str) -> list[str]:
        return read_table(one((tmp_path / out).glob("*/scored")))[col.ID].to_pylist()

    process = start("killed")
    try:
        wait_until(lambda: len(shared()) >= 3 * ROWS_PER_BLOCK, "three blocks are copied")
        children = below(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end(children)
        shutil.rmtree(tmp_path / "killed")
        copied, asked = shared(), len(log.read_text().splitlines())
        process = start("second")
        third = ual(*command, "--out", tmp_path / "third")
        assert third.code == 0, third.output
        assert process.wait(240) == 0
    finally:
        process.kill()
        process.wait()
    sent = len(log.read_text().splitlines()) - asked
    print(f"\n  {len(rows('third'))} rows, {len(copied)} shared before the kill, {asked} and {sent} requests")
    found = set(rows("third"))
    assert rows("second") == rows("third") and len(rows("third")) == len(found) > 20
    assert copied < found == shared() and sent == len(found - copied)


def test_what_cannot_be_used_is_refused_within_seconds(
    ual_process: Any, bucket: str, one_arm: list[str], tmp_path: Path
) -> None:
    refused = {
        "s3://no-such-bucket/run": "there is no bucket 'no-such-bucket'",
        "s4://bucket/run": "unsupported URI scheme",
        f"s3://user:{SECRET}@bucket/run": "a URI with a password or a key is refused",
    }
    for uri, reason in refused.items():
        started = time.monotonic()
        done = ual_process("run", *one_arm, f"output={uri}")
        assert done.code == 2 and reason in done.output and SECRET not in done.output, done.output
        assert time.monotonic() - started < 30
        shared = ual_process("run", *one_arm, f"output={tmp_path / 'run'}", f"elicit.store={uri}")
        assert shared.code == 2 and f"elicit.store: {reason}" in shared.output and SECRET not in shared.output, shared.output
        assert not (tmp_path / "run").exists()
    filesystem, _ = FileSystem.from_uri(f"{bucket}/x")
    with filesystem.open_output_stream("bucket/foreign/notes.txt") as stream:
        stream.write(b"of somebody else")
    foreign = ual_process("run", *one_arm, f"output={bucket}/foreign")
    assert foreign.code == 2 and "was not made by ual" in foreign.output, foreign.output
    assert files_at(f"{bucket}/foreign").keys() == {"notes.txt"}
    away = ual_process("run", *one_arm, f"output={bucket}/run", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert away.code == 2 and "output cannot be" in away.output and "AWS_ACCESS_KEY_ID" in away.output, away.output
