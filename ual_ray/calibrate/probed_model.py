"""A causal LM's hidden states at the label positions, and its logits chunk by chunk.

The hidden state of a label at position t is the one that predicts it, at t - 1. The logits of a whole split would take N x V
numbers; at most CHUNK_BYTES of them exist at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ual_ray.calibrate.adjustment import MAX_TOKENS, Adjustment, fit_adjustment, remove_floor
from ual_ray.calibrate.clustering import thin
from ual_ray.calibrate.metrics import fit_temperature_of
from ual_ray.models.compat_transformers import auto_causal_lm
from ual_ray.models.output_head import OutputHead

# Bytes of one chunk's float32 logits; their probabilities take the same amount again.
CHUNK_BYTES = 64 * 2**20
# Bytes of logits that are kept to fit a temperature, which reads them about seven times.
KEPT_BYTES = 2**30
# Tokens per batch, including padding: enough to keep a processor busy.
TOKENS_PER_BATCH = 4096
# A logit further below the largest has probability 0 at every legal temperature; clipped, as infinite logits have no mean.
LOWEST_LOGIT = -1e4

Places = NDArray[np.int64]
Progress = Callable[[int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """One rendered conversation: its tokens, and the positions (>= 1, ascending) of the labels."""

    input_ids: Places
    positions: Places

    @property
    def labels(self) -> Places:
        """The labels: the tokens to predict."""
        return self.input_ids[self.positions]


@dataclass(frozen=True)
class States:
    """Hidden states of a batch: [n, H] `after` the final norm and `before` it (None if no norm was found).

    `places` [n]: the rows' indices in the flat list of all texts' labels; `labels` is [n].
    """

    places: Places
    labels: Tensor
    after: Tensor
    before: Tensor | None


class ProbedModel:
    """A model in evaluation mode on one device, without gradients."""

    def __init__(self, path: str, dtype: str, device: str, trust_remote_code: bool = False) -> None:
        """Load a directory or hub name. Raises UserError when the model transforms its logits in an unsupported way.

        dtype: as evaluate.dtype; on a CPU "auto" and "float16" (slow there) mean float32. device: "cpu" or "cuda", which uses
        all GPUs.
        """
        on_cpu = device == "cpu"
        self.dtype = "float32" if on_cpu and dtype in ("auto", "float16") else dtype
        self.device = torch.device(device)
        spread = not on_cpu and torch.cuda.device_count() > 1
        model_class = auto_causal_lm()
        self._model: Any = model_class.from_pretrained(
            path,
            dtype="auto" if self.dtype == "auto" else getattr(torch, self.dtype),
            device_map="auto" if spread else {"": device},
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        ).eval()
        self._body: Any = self._model.get_decoder()
        self.head = OutputHead(self._model)
        self._before: Tensor | None = None
        self.norm = self._look()

    @torch.inference_mode()
    def states(self, texts: Sequence[Text], progress: Progress) -> Iterator[States]:
        """Run all texts, longest first, and yield their labels' states batch by batch; `progress` gets the token counts."""
        starts = np.cumsum([0, *(len(text.positions) for text in texts)])
        for batch in _batches([len(text.input_ids) for text in texts]):
            chosen = [texts[number] for number in batch]
            after, before = self._run(chosen)
            rows = np.repeat(np.arange(len(batch)), [len(text.positions) for text in chosen])
            columns = np.concatenate([text.positions for text in chosen]) - 1
            places = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in batch])
            labels = torch.from_numpy(np.concatenate([text.labels for text in chosen]))
            before = None if before is None else before[rows, columns]
            yield States(places, labels.to(self.device), after[rows, columns], before)
            progress(sum(len(text.input_ids) for text in chosen))

    def _run(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor | None]:
        ids = [torch.from_numpy(text.input_ids) for text in texts]
        mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
        # Padding is on the right, where no token attends to it.
        inputs = {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask}
        on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        after = self._body(**on_device, use_cache=False).last_hidden_state
        before, self._before = self._before, None
        # Some architectures flatten the batch around the norm.
        return after, None if before is None else before.reshape(after.shape)

    @torch.inference_mode()
    def _look(self) -> str | None:
        """Check the output layer against the model's own logits, and find the norm that feeds it."""
        ids = (torch.arange(1, 9, device=self.device) % self.head.size)[None]
        outputs: dict[str, Tensor] = {}

        def remember(name: str) -> Callable[..., None]:
            return lambda module, inputs, output: outputs.update({name: output}) if isinstance(output, Tensor) else None

        norms = self._norms()
        hooks = [module.register_forward_hook(remember(name)) for name, module in norms.items()]
        hidden = self._body(input_ids=ids, use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        self._check_head(hidden, ids)
        # With several GPUs most norms are on others than the output, which the last one feeds.
        here = {name: output for name, output in outputs.items() if output.device == hidden.device}
        found = [name for name, output in here.items() if torch.equal(output.flatten(), hidden.flatten())]
        if not found:
            kind = type(self._model).__name__
            logger.warning("%s: found no norm in front of the output layer; states before the norm are not measured", kind)
            return None
        norms[found[-1]].register_forward_pre_hook(self._remember_before)
        return found[-1]

    def _norms(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._body.named_modules() if "norm" in type(module).__name__.lower()}

    def _remember_before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._before = inputs[0]

    def _check_head(self, hidden: Tensor, ids: Tensor) -> None:
        logits, labels = self.head.logits(hidden[0, :-1]), ids[0, 1:]
        self.head.check(
            nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum"),
            self._model(input_ids=ids, use_cache=False).logits[0, :-1],
            labels,
            f"the calibration of models of the kind {type(self._model).__name__} cannot be measured yet",
            "set evaluate.calibration.enabled=false: the model transforms its logits in an unsupported way",
        )


def logits_in_chunks(head: OutputHead, hidden: Tensor, labels: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield slices of [n, H] with their logits [chunk, K] and labels [chunk]."""
    size = max(1, CHUNK_BYTES // (4 * head.size))
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        logits = head.logits(hidden[rows])
        yield rows, logits, labels[rows].to(logits.device)


@dataclass(frozen=True)
class TokenStatistics:
    """Of each token, float64 or bool of [n]: see columns.TOKEN_STATISTICS."""

    nll: NDArray[np.float64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    brier: NDArray[np.float64]

    @classmethod
    def empty(cls, count: int) -> TokenStatistics:
        """Allocate arrays for `n` tokens."""
        return cls(np.empty(count), np.empty(count), np.empty(count, dtype=bool), np.empty(count))


def measure(head: OutputHead, states: States, adjustments: Sequence[Adjustment], into: Sequence[TokenStatistics]) -> None:
    """Measure a batch under every adjustment and write the results into its rows of `into`."""
    for rows, logits, labels in logits_in_chunks(head, states.after, states.labels):
        argmax = logits.argmax(1)
        places = states.places[rows]
        for adjustment, target in zip(adjustments, into, strict=True):
            adjusted = remove_floor(logits, adjustment.floor) / adjustment.temperature
            at_label, largest = (adjusted.gather(1, chosen[:, None]).squeeze(1) for chosen in (labels, argmax))
            probabilities = torch.softmax(adjusted, dim=1)
            confidence = probabilities.gather(1, argmax[:, None]).squeeze(1)
            # Relative to the largest probability, at least 1 / K: the label's own may underflow.
            nll = largest - at_label - confidence.log()
            right = probabilities.gather(1, labels[:, None]).squeeze(1)
            brier = torch.linalg.vector_norm(probabilities, dim=1).square() - 2 * right + 1
            target.nll[places] = _numpy(nll)
            target.confidence[places] = _numpy(confidence).clip(0, 1)
            target.correct[places] = (argmax == labels).cpu().numpy()
            target.brier[places] = _numpy(brier).clip(0, 2)


def log_probabilities(
    head: OutputHead, states: States, temperatures: Sequence[float], into: Sequence[NDArray[np.float64]]
) -> None:
    """Write the labels' log-probabilities (in nats) at every temperature into the batch's rows of `into`."""
    for rows, logits, labels in logits_in_chunks(head, states.after, states.labels):
        at_label = logits.gather(1, labels[:, None]).squeeze(1)
        for temperature, target in zip(temperatures, into, strict=True):
            target[states.places[rows]] = _numpy(at_label / temperature - torch.logsumexp(logits / temperature, dim=1))


def _to_fit(head: OutputHead, hidden: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits [chunk, K] for a fit, the largest of each token 0 and none infinite, with their labels [chunk]."""
    for _, logits, chunk_labels in logits_in_chunks(head, hidden, labels):
        yield (logits - logits.max(1, keepdim=True).values).clamp_(min=LOWEST_LOGIT), chunk_labels


@torch.inference_mode()
def temperature_of(head: OutputHead, hidden: Tensor, labels: Tensor) -> float:
    """Fit the temperature to hidden states [n, H] after the final norm and their labels [n]; see calibration."""
    kept = [*_to_fit(head, hidden, labels)] if 4 * len(hidden) * head.size <= KEPT_BYTES else None

    def slope(inverse: float) -> float:
        total = 0.0
        for logits, chunk_labels in kept or _to_fit(head, hidden, labels):
            at_label = logits.gather(1, chunk_labels[:, None]).squeeze(1)
            means = torch.linalg.vecdot(torch.softmax(inverse * logits, dim=1), logits)
            total += float((means - at_label).double().sum())
        return total / len(labels)

    return fit_temperature_of(slope)


@torch.inference_mode()
def nll_at(head: OutputHead, hidden: Tensor, labels: Tensor, temperature: float) -> float:
    """Return the mean NLL (nats) of labels [n] given hidden states [n, H] after the final norm, at a temperature."""
    total = 0.0
    for _, logits, chunk_labels in logits_in_chunks(head, hidden, labels):
        total += float(nn.functional.cross_entropy(logits.double() / temperature, chunk_labels, reduction="sum"))
    return total / len(labels)


@torch.inference_mode()
def adjustment_of(head: OutputHead, hidden: Tensor, labels: Tensor, temperature: float) -> Adjustment:
    """Fit temperature and floor to up to MAX_TOKENS of the states [n, H] and labels [n]; temperature: as fitted alone."""
    chosen = torch.from_numpy(thin(len(labels), MAX_TOKENS))
    return fit_adjustment([*_to_fit(head, hidden[chosen.to(hidden.device)], labels[chosen])], temperature)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group texts by length, longest first, into batches of at most TOKENS_PER_BATCH tokens, padding included."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
