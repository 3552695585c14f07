"""What Ray costs: our pool against one bare vllm.LLM call in one process, and two one-thread actors against one.

    python bench/elicit_vs_bare_vllm.py --data ../shared/data/dolly_3k.json [--rows 512]

The bare call gets all prompts at once, rendered beforehand, and is timed without its start-up. Ours is taken from two sizes:
what the further rows cost, start-up cancelled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from alone import run_side
from common import read_rows, report, write_canonical
from pool import MAX_MODEL_LEN, run_pool

from ual_ray import columns as col
from ual_ray.parquet import read_table


def run_bare(rows: Path, few: int, options: argparse.Namespace) -> None:
    """One engine in one process with both threads, all prompts in one call; prints the seconds for all rows but `few`."""
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    from ual_ray.models.chat import load_renderer
    from ual_ray.models.resolve import resolve_model

    path = resolve_model("demo")
    renderer = load_renderer(path)
    table = read_table(rows)
    prompts = [{"prompt_token_ids": renderer.prompt_ids(messages[:-1])} for messages in table[col.MESSAGES].to_pylist()]
    engine = LLM(model=path, dtype=options.dtype, max_model_len=MAX_MODEL_LEN, enforce_eager=True, disable_log_stats=True)
    sampling = SamplingParams(temperature=0, max_tokens=options.max_tokens)
    engine.generate(prompts[:few], sampling, use_tqdm=False)
    started = time.monotonic()
    engine.generate(prompts[few:], sampling, use_tqdm=False)
    print(f"SECONDS {time.monotonic() - started}")


def spawn(side: str, source: Path, folder: Path, options: argparse.Namespace, **settings: int) -> tuple[float, str]:
    """Run a side in a process of its own; return its seconds and what it printed."""
    out = folder / "-".join([side, *map(str, settings.values())])
    log = out.with_suffix(".log")
    same = {"max_tokens": options.max_tokens, "dtype": options.dtype}
    seconds = run_side(__file__, side, log, input=source, out=out, **same, **settings)
    return seconds, log.read_text()


def main() -> None:
    """Measure the bare engine, one actor with its threads, one one-thread actor, and two of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="rows, such as dolly_3k.json")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--few", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--side", choices=("bare", "pool"))
    parser.add_argument("--input", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side == "bare":
        run_bare(options.input, options.few, options)
        return
    if options.side == "pool":
        own = (options.actors, options.threads, options.in_flight)
        run_pool(options.input, options.rows, options.out, options.max_tokens, options.dtype, *own)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = read_rows(options.data, options.rows)
        files = {}
        for size in (options.few, options.rows):
            files[size] = folder / f"{size}.parquet"
            write_canonical(rows[:size], files[size])
        measurements = []

        def note(what: str, seconds: float) -> float:
            speed = (options.rows - options.few) / seconds
            measurements.append({"": what, f"{options.rows - options.few} rows (s)": seconds, "rows/s": speed})
            print(json.dumps(measurements[-1]), flush=True)
            return speed

        _, printed = spawn("bare", files[options.rows], folder, options, threads=2, few=options.few)
        bare = note("vllm.LLM, one process, 2 threads", float(printed.split("SECONDS ")[1].split()[0]))

        def pool(actors: int, threads: int, in_flight: int = 1) -> float:
            few, many = (
                spawn("pool", files[size], folder, options, rows=size, actors=actors, threads=threads, in_flight=in_flight)[0]
                for size in (options.few, options.rows)
            )
            return note(f"{actors} actor(s) of {threads} thread(s), {in_flight} batch(es) in flight", many - few)

        one, overlapping, single, double = pool(1, 2), pool(1, 2, in_flight=2), pool(1, 1), pool(2, 1)
        crowded = pool(2, 1, in_flight=2)
    ratios = {
        "one actor over the bare engine, 2 threads each": (one / bare, "-"),
        "one actor with two batches in flight over the bare engine": (overlapping / bare, ">= 0.92"),
        "two batches in flight over one, one actor of 2 threads": (overlapping / one, ">= 1"),
        "two batches in flight over one, two one-thread actors": (crowded / double, "-"),
        "two one-thread actors over one": (double / single, ">= 1.7"),
        "two one-thread actors over the bare engine": (double / bare, ">= 0.95"),
    }
    report("elicit_vs_bare_vllm", measurements, ratios, max_tokens=options.max_tokens, dtype=options.dtype)


if __name__ == "__main__":
    main()
