"""One training of a small random Llama through the real token store, loop and export, as the only rank, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import torch
import torch.distributed as dist

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.config.files import write_json
from ual_ray.config.known_truth import KnownTruthConfig
from ual_ray.experiment.truth import Numbers, World
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.train.loop import TrainingJob, train_worker
from ual_ray.train.token_store import FILE_SUFFIX

LAYERS, HEADS = 2, 4
FEED_FORWARD = 4
LENGTH = 16


@contextmanager
def only_rank() -> Iterator[None]:
    """Be the only rank of a gloo process group, with one thread: more of them slow such small products down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def train(settings: KnownTruthConfig, world: World, alpha: Numbers, seed: int, folder: Path) -> Numbers:
    """Train on the first contexts with their alphas, and return the exported model's logits of all contexts, [N, K].

    alpha: [world.train]. Writes the initial model, the tokens and the trained model into `folder`, which is empty.
    Raises RuntimeError when training stops early.
    """
    model, tokens, out = folder / "initial", folder / "tokens", folder / "trained"
    write_model(settings, model, seed)
    write_tokens(world, alpha, tokens)
    out.mkdir()
    job = TrainingJob(train_config(settings), str(model), str(tokens), str(out), seed)
    outcome = train_worker(job, torch.device("cpu"), pyarrow.fs.LocalFileSystem(), str(out / "checkpoints"))
    if outcome.ending != "finished":
        raise RuntimeError(f"training {outcome.ending} at step {outcome.step}: {outcome.message}")
    return answer_logits(out / col.MODEL_FOLDER, world)


def train_config(settings: KnownTruthConfig) -> TrainConfig:
    """Make the settings of training; what is not named here is as in `ual train`."""
    return TrainConfig(
        num_workers=1,
        dtype="float32",
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        global_batch_size=settings.batch_size,
        micro_batch_size=settings.batch_size,
        max_length=LENGTH,
        uncertainty_bins=0,
        checkpoint_every=None,
    )


def write_model(settings: KnownTruthConfig, folder: Path, seed: int) -> None:
    """Write a random Llama whose vocabulary is the answers, so that uniform smoothing is uniform over them."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=settings.answers,
        hidden_size=settings.hidden_size,
        intermediate_size=FEED_FORWARD * settings.hidden_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"type": "WordLevel", "vocab": {str(token): token for token in range(settings.answers)}, "unk_token": "0"}
    write_json(folder / "tokenizer.json", {"version": "1.0", "model": words, "added_tokens": []})
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)


def write_tokens(world: World, alpha: Numbers, folder: Path) -> None:
    """Write the contexts to train on and to validate with as rendered rows, in which the label alone is trained on."""
    folder.mkdir()
    rows = []
    for at in range(world.validation):
        ids = [*world.contexts[at].tolist(), int(world.labels[at])]
        rows.append(
            {
                col.ID: f"{at:08d}",
                col.SPLIT: col.TRAIN if at < world.train else col.VALIDATION,
                col.ALPHA: float(alpha[at]) if at < world.train else 0.0,
                col.UNCERTAINTY: None,
                col.TARGET_TOKENS: 1,
                col.INPUT_IDS: ids,
                col.LABELS: [*[IGNORE_INDEX] * (len(ids) - 1), ids[-1]],
            }
        )
    with pa.OSFile(str(folder / f"rows{FILE_SUFFIX}"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, col.TOKENS))


@torch.no_grad()
def answer_logits(model: Path, world: World) -> Numbers:
    """Load an exported model, and compute its logits of the answers behind every context, [N, K]."""
    from transformers import AutoModelForCausalLM

    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logits = causal_lm(input_ids=torch.from_numpy(world.contexts), use_cache=False).logits[:, -1]
    return np.asarray(logits.double().numpy())
