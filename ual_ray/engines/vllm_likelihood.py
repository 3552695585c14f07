"""The cheap, exact way to a response's NLL inside vLLM: a worker extension that looks at the response's positions alone.

vLLM's own prompt_logprobs computes logits for every prompt token, normalises all of them into a second array of the same
size, and ranks each token among the whole vocabulary. A score needs none of the prompt's positions and no rank: the
log-probability of a token is its logit less the logsumexp of its row.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXTENSION = f"{__name__}.LikelihoodExtension"
# SamplingParams.extra_args: the first prompt position whose token is scored.
SCORED_FROM = "ual_ray_scored_from"
# Rows of logits held at a time: 256 of 150,000 entries in float32 are 150 MB.
ROWS_AT_A_TIME = 256


class LikelihoodExtension:
    """Mixed into vLLM's workers through `worker_extension_cls`; called through `collective_rpc`."""

    def ual_use_cheap_likelihood(self) -> bool:
        """Put the cheap way in place; False where this version of vLLM has nothing to put it into."""
        runner = getattr(self, "model_runner", None)
        wanted = ("_get_prompt_logprobs_dict", "num_prompt_logprobs", "requests", "input_batch", "query_start_loc")
        if runner is None or not all(hasattr(runner, name) for name in wanted):
            return False
        runner._get_prompt_logprobs_dict = MethodType(response_log_probabilities, runner)
        return True


def response_log_probabilities(
    runner: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
) -> dict[str, Any]:
    """Fill vLLM's prompt log-probabilities of this step; a request's come back when its prompt is all read.

    hidden_states [scheduled tokens, hidden size]. Positions before SCORED_FROM stay 0; ranks are not computed.
    """
    finished: dict[str, Any] = {}
    for request_id in list(runner.num_prompt_logprobs):
        scheduled = num_scheduled_tokens.get(request_id)
        if scheduled is None:  # preempted: its turn comes again
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
            table.logprob_token_ids[begin:end, 0] = _as_tensor(targets[begin:end])
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


def _as_tensor(values: list[int]) -> torch.Tensor:
    import torch

    return torch.tensor(values, dtype=torch.int32)
