"""Our actors against ray.data.llm's vLLM processor: the same rows, model, sampling and outputs, on the same cores.

    python bench/elicit_vs_ray_data_llm.py --data ../shared/data/dolly_3k.json [--rows 512] [--max-tokens 32] [--samples 8]

Both answer every instruction, greedily or with several samples, and write (id, text) as Parquet. ray.data.llm keeps one answer
of a request, so its rows are repeated, without seeds: on a CPU vLLM 0.32 dies of a seeded prompt that it reads in chunks. Each
runs in a process of its own, Ray included. The steady state is taken from two sizes: what the further rows cost, start-up
cancelled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import ray
from alone import run_side
from common import read_rows, report, write_canonical
from pool import MAX_MODEL_LEN, TEXT, run_pool

from ual_ray import columns as col
from ual_ray.models.resolve import resolve_model

# Between a row's id and the number of its copy.
COPY = "#"


def run_ours(rows: Path, out: Path, options: argparse.Namespace) -> None:
    """One-thread actors of ours, one per core."""
    run_pool(rows, options.rows, out, options.max_tokens, options.dtype, options.actors, samples=options.samples)


def run_peer(rows: Path, out: Path, options: argparse.Namespace) -> None:
    """ray.data.llm as its documentation shows it, with as many one-thread engines."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # As much room as the pipeline of its many small actors asks for; the engines still have one thread each.
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    config = vLLMEngineProcessorConfig(
        model_source=resolve_model("demo"),
        engine_kwargs={"dtype": options.dtype, "max_model_len": MAX_MODEL_LEN, "enforce_eager": True},
        concurrency=options.actors,
        batch_size=64,
        runtime_env={"env_vars": {**threads, "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}},
        placement_group_config={"bundles": [{"CPU": 1}]},
        log_engine_metrics=False,
    )
    sampling = {"temperature": float(options.samples > 1), "max_tokens": options.max_tokens}

    def request(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": list(row[col.MESSAGES])[:-1], "sampling_params": sampling, col.ID: row[col.ID]}

    processor = build_processor(
        config,
        preprocess=request,
        postprocess=lambda row: {col.ID: row[col.ID], TEXT: row["generated_text"]},
    )
    processor(ray.data.read_parquet(str(rows)).repartition(target_num_rows_per_block=64)).write_parquet(str(out))
    ray.shutdown()


def measure(which: str, data: Path, size: int, folder: Path, options: argparse.Namespace) -> tuple[float, dict[str, str]]:
    """Run one side on the first `size` rows in a process of its own; return its seconds and its answers by id."""
    from ual_ray.parquet import read_table

    rows, out = folder / f"{size}.parquet", folder / f"{which}-{size}"
    table = read_table(data).slice(0, size)
    copies = options.samples if which == "peer" else 1
    ids = [f"{one}{COPY}{copy}" for copy in range(copies) for one in table[col.ID].to_pylist()]
    if copies > 1:
        table = pa.concat_tables([table] * copies).set_column(0, col.ID, pa.array(ids))
    pyarrow.parquet.write_table(table, rows)
    same = {name: getattr(options, name) for name in ("max_tokens", "dtype", "actors", "samples")}
    seconds = run_side(__file__, which, folder / f"{which}-{size}.log", rows=size, input=rows, out=out, **same)
    answers = read_table(out / "finished" if which == "ours" else out)
    found = dict(zip(answers[col.ID].to_pylist(), answers[TEXT].to_pylist(), strict=True))
    if len(found) != len(table):
        raise SystemExit(f"{which} wrote {len(found)} of {len(table)} answers")
    return seconds, found


def main() -> None:
    """Measure both sides at two sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="rows, such as dolly_3k.json")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--few", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "peer"))
    parser.add_argument("--input", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        {"ours": run_ours, "peer": run_peer}[options.side](options.input, options.out, options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.parquet"
        write_canonical(read_rows(options.data, options.rows), data)
        measurements, answers = [], {}
        for which in ("peer", "ours"):
            few, _ = measure(which, data, options.few, folder, options)
            many, answers[which] = measure(which, data, options.rows, folder, options)
            steady = (options.rows - options.few) / (many - few)
            measurements.append(
                {"": which, f"{options.few} rows (s)": few, f"{options.rows} rows (s)": many, "steady state (rows/s)": steady}
            )
            print(json.dumps(measurements[-1]), flush=True)
    peer, ours = measurements
    total = f"{options.rows} rows (s)"
    sampled = options.samples > 1
    ratios: dict[str, tuple[float, str]] = {
        f"end to end at {options.rows} rows": (peer[total] / ours[total], "-" if sampled else ">= 1.8"),
        "steady state": (ours["steady state (rows/s)"] / peer["steady state (rows/s)"], ">= 1.3" if sampled else ">= 1.1"),
    }
    if not sampled:
        same = sum(answers["ours"][key] == answers["peer"][key] for key in answers["ours"]) / options.rows
        ratios["share of equal answers"] = (same, "near 1: greedy decoding differs by batch")
    settings = {name: getattr(options, name) for name in ("max_tokens", "dtype", "actors", "samples")}
    report("elicit_vs_ray_data_llm" + "_sampled" * sampled, measurements, ratios, **settings)


if __name__ == "__main__":
    main()
