"""`ual experiment known_truth`: arms, seeds and corruptions of an oracle's uncertainty, against the exact truth.

Each training, of a small random Llama, goes through the real token store, loop and export, as the only rank, without Ray.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import torch
import torch.distributed as dist

from ual_ray import __version__
from ual_ray import columns as col
from ual_ray.calibrate.metrics import fit_temperature
from ual_ray.columns import digest
from ual_ray.config import TrainConfig
from ual_ray.config.experiment import KnownTruthConfig
from ual_ray.config.files import read_json, write_json, write_record, write_text
from ual_ray.config.keys import affecting
from ual_ray.config.names import CONSTANT, NO_SMOOTHING, SFT, SHUFFLED, UAL
from ual_ray.experiment.findings import KL, METRICS, REGRET, SCALED_KL, Case, Finding, compare, tables
from ual_ray.experiment.truth import Numbers, World, corrupt, divergence, draw_world, oracle_uncertainty, regret
from ual_ray.models.chat import IGNORE_INDEX
from ual_ray.models.compat_transformers import auto_causal_lm
from ual_ray.smooth import assign_alpha
from ual_ray.train.loop import TrainingJob, train_worker

LAYERS, HEADS = 2, 4
FEED_FORWARD = 4
LENGTH = 16
ARMS = {SFT: NO_SMOOTHING, CONSTANT: "constant", SHUFFLED: "shuffled", "inverted": "inverted", UAL: "mean_matched"}
CASES_FOLDER = "cases"
RESULTS_FILE, TABLES_FILE, PLOT_FILE = "known_truth.json", "known_truth.md", "known_truth.svg"
Show = Callable[[str], None]


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
    """Write the contexts to train on as rendered rows, in which the label alone is trained on."""
    folder.mkdir()
    rows = []
    for at in range(world.train):
        ids = [*world.contexts[at].tolist(), int(world.labels[at])]
        rows.append(
            {
                col.ID: f"{at:08d}",
                col.SPLIT: col.TRAIN,
                col.ALPHA: float(alpha[at]),
                col.UNCERTAINTY: None,
                col.TARGET_TOKENS: 1,
                col.INPUT_IDS: ids,
                col.LABELS: [*[IGNORE_INDEX] * (len(ids) - 1), ids[-1]],
            }
        )
    with pa.OSFile(str(folder / f"rows{col.TOKENS_SUFFIX}"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, col.TOKENS))


@torch.no_grad()
def answer_logits(model: Path, world: World) -> Numbers:
    """Load an exported model, and compute its logits of the answers behind every context, [N, K]."""
    causal_lm = auto_causal_lm().from_pretrained(model, dtype=torch.float32).eval()
    logits = causal_lm(input_ids=torch.from_numpy(world.contexts), use_cache=False).logits[:, -1]
    return np.asarray(logits.double().numpy())


def run(settings: KnownTruthConfig, out: Path, show: Show) -> list[Finding]:
    """Train every arm under every seed and corruption, compare them, and write tables, JSON and a plot into `out`.

    A training that is finished is read from `out`; its key is a hash of the settings and its alphas, so an arm that does not
    depend on the corruption is trained once. show: prints a line.
    """
    cases: list[Case] = []
    with only_rank():
        for corruption in settings.corruptions:
            for seed in settings.seeds:
                cases += run_seed(settings, corruption, seed, out / CASES_FOLDER, show)
    findings = [finding for corruption in settings.corruptions for finding in compare(cases, corruption, UAL)]
    text = tables(cases, findings)
    show(f"\n{text}")
    write_text(out / TABLES_FILE, f"{text}\n")
    content = {"settings": settings.model_dump(), "version": __version__, "cases": [case.summary() for case in cases]}
    write_json(out / RESULTS_FILE, content | {"comparisons": [asdict(finding) for finding in findings]})
    if len(settings.corruptions) > 1:
        write_plot(findings, out / PLOT_FILE)
    return findings


def run_seed(settings: KnownTruthConfig, corruption: float, seed: int, folder: Path, show: Show) -> Iterator[Case]:
    """Train the arms of one seed and corruption, which differ in their alphas alone."""
    world = draw_world(settings.contexts, settings.symbols, settings.answers, seed)
    uncertainty = corrupt(oracle_uncertainty(world.truth[: world.train]), corruption, seed)
    for arm, name in ARMS.items():
        alpha = assign_alpha(uncertainty, {"map": name, "alpha_mean": settings.alpha_mean}, seed=seed)
        file = folder / f"{digest([__version__, affecting(settings, 'weights'), seed, alpha.tolist()])}.json"
        content = read_json(file)
        if content is None:
            content = measure(settings, world, alpha, seed)
            folder.mkdir(parents=True, exist_ok=True)
            write_record(file, content)
        values = {name: np.array(content[name]) for name in METRICS}
        case = Case(arm, seed, corruption, values, world.strata[world.validation :], content["temperature"], content["seconds"])
        parts = [f"{name} {case.mean(name):.3f}" for name in METRICS]
        show(f"corruption {corruption:g}, seed {seed}, {arm}: {', '.join(parts)}, {content['seconds']:.1f} s")
        yield case


def measure(settings: KnownTruthConfig, world: World, alpha: np.ndarray, seed: int) -> dict[str, Any]:
    """Train one arm; return the metrics of every test context, the temperature, the mean alpha and the duration."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        logits = train(settings, world, alpha, seed, Path(folder))
    seen, test = slice(world.train, world.validation), slice(world.validation, None)
    temperature = fit_temperature(logits[seen], world.labels[seen])
    truth = world.truth[test]
    return {
        "seed": seed,
        "mean_alpha": float(alpha.mean()),
        "temperature": temperature,
        "seconds": time.monotonic() - started,
        KL: divergence(truth, logits[test]).tolist(),
        SCALED_KL: divergence(truth, logits[test], temperature).tolist(),
        REGRET: regret(truth, logits[test]).tolist(),
    }


def write_plot(findings: Sequence[Finding], file: Path) -> None:
    """Draw the differences in KL from every other arm, by corruption."""
    from ual_ray.plots.intervals import by_corruption

    drawn: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {METRICS[name]: {} for name in (KL, SCALED_KL)}
    for found in findings:
        if (references := drawn.get(METRICS[found.metric])) is not None:
            point = (found.corruption, found.difference, found.ci_low, found.ci_high)
            references.setdefault(found.reference, []).append(point)
    by_corruption(drawn, UAL).savefig(file)
