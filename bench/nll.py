"""What the likelihood of a given response costs: vLLM's prompt_logprobs, our cheaper exact way, and a plain prefill.

    python bench/nll.py --data ../shared/data/dolly_3k.json [--rows 96]

One engine, one process, the same token ids each time and no prefix cache, so that nothing is read for free.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import read_rows, report

from ual_ray.config import EngineConfig
from ual_ray.engines import EngineSpec
from ual_ray.engines.requests import Completion, Likelihood, LikelihoodResult, turns
from ual_ray.engines.vllm_engine import VLLMEngine

REPEATS = 3


def best(run: Callable[[], Any]) -> tuple[float, Any]:
    """Time a call several times; return the shortest and the last result."""
    seconds = []
    for _ in range(REPEATS):
        started = time.monotonic()
        result = run()
        seconds.append(time.monotonic() - started)
    return min(seconds), result


def main() -> None:
    """Measure the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    config = EngineConfig(
        dtype=options.dtype,
        cpus_per_actor=options.threads,
        max_model_len=2048,
        arguments={"enable_prefix_caching": False},
    )
    engine = VLLMEngine(EngineSpec(config, "demo"))
    rows = read_rows(options.data, options.rows)
    likelihoods = [Likelihood(turns(messages), last_reply_only=True) for messages in rows]
    prefills = [Completion(turns(messages), max_tokens=1) for messages in rows]
    engine.run(likelihoods[:4])

    runner = engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner
    ours = runner._get_prompt_logprobs_dict
    measurements, results = [], {}
    for name, requests, cheap in (
        ("plain prefill", prefills, True),
        ("prompt_logprobs", likelihoods, False),
        ("ours", likelihoods, True),
    ):
        if cheap:
            runner._get_prompt_logprobs_dict = ours
        else:
            del runner.__dict__["_get_prompt_logprobs_dict"]  # vLLM's own method shows again
        seconds, results[name] = best(partial(engine.run, requests))
        tokens = sum(result.prompt_tokens for result in results[name])
        measurements.append({"": name, "seconds": seconds, "prompt tokens/s": tokens / seconds})
    times = {row[""]: 1 / row["prompt tokens/s"] for row in measurements}
    pairs = [
        (a, b) for a, b in zip(results["ours"], results["prompt_logprobs"], strict=True) if isinstance(a, LikelihoodResult)
    ]
    assert all(isinstance(b, LikelihoodResult) for _, b in pairs)
    furthest = max(abs(a.nll_sum - b.nll_sum) / max(1, b.target_tokens) for a, b in pairs)
    scored = sum(a.target_tokens for a, _ in pairs) / sum(a.prompt_tokens for a, _ in pairs)
    ratios = {
        "before: prompt_logprobs over a plain prefill": (times["prompt_logprobs"] / times["plain prefill"], "-"),
        "after: ours over a plain prefill": (times["ours"] / times["plain prefill"], "near 1"),
        "share of the tokens that are scored": (scored, "-"),
        "largest difference in NLL per token, nats x 1e6": (1e6 * furthest, "near 0"),
    }
    report(f"nll_{options.dtype}", measurements, ratios, rows=options.rows, threads=options.threads)


if __name__ == "__main__":
    main()
