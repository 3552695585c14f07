"""Two ranks with a core each against one rank with both: what sharding costs in time, and saves in memory.

    python bench/train_ranks.py --data ../shared/data/dolly_3k.json [--dtype float32 --rows 150 --steps 2]

The same steps of the same rows. Memory is the high-water mark of a rank's process, from its start; what a process takes
that only has the libraries loaded is told beside it.
"""

from __future__ import annotations

import argparse

import torch
from alone import peak_bytes, run_alone
from common import report
from training import Work, add_options, make_config, real_samples, run_ranks, settings_of


def nothing() -> dict[str, float]:
    """Load the libraries and do no more."""
    return {"peak (MB)": peak_bytes() / 2**20}


def main() -> None:
    """Run both, and report the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    samples = real_samples(options.data, options.rows, options.model, options.max_length)
    rows, found = [], {}
    for ranks in (1, options.cores):
        config = make_config(options, num_workers=ranks, micro_batch_size=options.batch // ranks)
        work = Work(options.model, samples, config, options.cores // ranks, options.steps)
        all_ranks = run_ranks(work, ranks)
        # The slowest and the largest count.
        found[ranks] = all_ranks[0] | {
            name: worst(rank[name] for rank in all_ranks) for name, worst in (("tokens/s", min), ("peak (MB)", max))
        }
        columns = ("tokens/s", "peak (MB)", "nll")
        rows.append({"": f"{ranks} ranks x {work.threads} threads", **{name: found[ranks][name] for name in columns}})
    empty = run_alone(nothing)
    rows.append({"": "libraries alone", "tokens/s": 0.0, **empty, "nll": 0.0})
    one, many = found[1], found[options.cores]
    name, memory = f"{options.cores} ranks over 1", "peak (MB)"
    less = [row[memory] - empty[memory] for row in (many, one)]
    ratios = {
        f"tokens/s, {name}": (many["tokens/s"] / one["tokens/s"], "-"),
        f"peak memory per rank, {name}": (many[memory] / one[memory], "<= 0.65"),
        f"peak memory per rank without libraries, {name}": (less[0] / less[1], "-"),
        "difference of the NLL of the last step x 1e6": (1e6 * abs(many["nll"] - one["nll"]), "near 0 in float32"),
    }
    report(f"train_ranks_{options.dtype}", rows, ratios, **settings_of(options), torch=torch.__version__)


if __name__ == "__main__":
    main()
