"""Arms on real text: open-ended and deterministic rows, several epochs and seeds, with and without corrupted responses.

    python bench/real_text.py train FOLDER --open-ended dolly.json --deterministic gsm8k.jsonl [--model NAME] [--corrupted 0.2]
    python bench/real_text.py report OUT.json FOLDER...

`train` needs torch, transformers, scipy and what the package's configuration needs, but no Ray, vLLM, MLflow or network, so it
runs on a machine with a GPU alone. The elicitor is the model itself before training: U = 1 - exp(-mean NLL of the response),
the estimator `nll`; the maps, the token store, the training loop with its loss, and the export are those of `ual run`. Every
case (arm, seed) is one file in FOLDER, and is not run again. `report` compares the arms over seeds, and draws OUT.svg.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_text_report import KINDS, MEASURES, report

from ual_ray import columns as col
from ual_ray.calibrate.adjustment import Adjustment, fit_adjustment, remove_floor
from ual_ray.calibrate.probed_model import ProbedModel, Text, logits_in_chunks
from ual_ray.config import ArmConfig, TrainConfig

Numbers = NDArray[np.float64]
Row = dict[str, Any]

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
ARMS = {
    "sft": ArmConfig(map="none"),
    "constant": ArmConfig(map="constant", base="rank", alpha_min=0.0, alpha_max=0.2),
    "shuffled_within": ArmConfig(map="shuffled_within", base="rank", alpha_min=0.0, alpha_max=0.2),
    "ual": ArmConfig(map="rank", alpha_min=0.0, alpha_max=0.2),
}


def main() -> None:
    """Train the cases, or report on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    for kind in KINDS:
        training.add_argument(f"--{kind.replace('_', '-')}", type=Path, required=True)
    training.add_argument("--model", default="demo")
    training.add_argument("--rows", type=int, default=2500, help="training rows, half of each kind")
    training.add_argument(
        "--characters", type=int, default=100_000, help="leave longer rows out: question and response together"
    )
    training.add_argument("--validation", type=int, default=150, help="validation rows of each kind")
    training.add_argument("--test", type=int, default=300, help="test rows of each kind")
    training.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16" if CUDA else "float32",
        help="of the products in training",
    )
    training.add_argument("--corrupted", type=float, default=0.0, help="share of training rows with another row's response")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    training.add_argument("--packs", type=int, default=8, help="packs per optimizer step")
    training.add_argument("--length", type=int, default=1024, help="tokens per pack; longer rows are cut")
    training.add_argument("--epochs", type=int, default=4)
    training.add_argument("--learning-rate", type=float, default=2e-4)
    training.add_argument("--minutes", type=float, default=1e9, help="start no case after so many")
    training.set_defaults(run=train_all)
    reporting = commands.add_parser("report")
    reporting.add_argument("out", type=Path)
    reporting.add_argument("folders", type=Path, nargs="+")
    reporting.set_defaults(run=report)
    options = parser.parse_args()
    options.run(options)


def train_all(options: argparse.Namespace) -> None:
    """Render and score the rows once, then train and measure every case that is not there yet."""
    from ual_ray.models.resolve import resolve_model

    end = time.monotonic() + 60 * options.minutes
    options.folder.mkdir(parents=True, exist_ok=True)
    path = resolve_model(options.model)
    rows = make_rows(options)
    texts = render(path, rows)
    base = options.folder / "base.npz"
    probed = ProbedModel(path, "float32", str(DEVICE))
    mean_nll = sums_of(probed, texts, {"nll": Adjustment()})["nll"] / counts_of(texts)
    if not base.exists():
        write_case(base, measured(probed, rows, texts), rows, texts, {"arm": "base", "seed": 0})
    del probed
    uncertainty, lengths = 1 - np.exp(-mean_nll), np.array([(text.positions < options.length).sum() for text in texts])
    if not (options.folder / "elicited.json").exists():
        write_json(options.folder / "elicited.json", elicited(rows, uncertainty, options))
    torch.distributed.init_process_group("nccl" if CUDA else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    for seed in options.seeds:
        for arm in options.arms:
            file = options.folder / f"{arm}-{seed}.npz"
            if not file.exists() and time.monotonic() < end:
                run_case(options, path, rows, texts, uncertainty, lengths, arm, seed, file)
    torch.distributed.destroy_process_group()


def make_rows(options: argparse.Namespace) -> list[Row]:
    """Take rows of both kinds: id, split, source, messages, and whether the response is another row's."""
    from ual_ray.data.formats import BadRow
    from ual_ray.data.known_formats import ALPACA, GSM8K

    chosen: list[Row] = []
    for kind, format in zip(KINDS, (ALPACA, GSM8K), strict=True):
        text = getattr(options, kind).read_text(encoding="utf-8")
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        good: list[Any] = []
        for record in records:
            try:
                messages = format.convert(record)
            except BadRow:
                continue
            if sum(len(message["content"]) for message in messages) <= options.characters:
                good.append(messages)
        random.Random(0).shuffle(good)
        sizes = {col.TEST: options.test, col.VALIDATION: options.validation, col.TRAIN: options.rows // 2}
        assert len(good) >= sum(sizes.values()), f"{kind}: {len(good)} rows, {sum(sizes.values())} wanted"
        splits = [split for split, size in sizes.items() for _ in range(size)]
        chosen += [
            {col.ID: f"{kind}-{number:05d}", col.SPLIT: split, col.SOURCE: kind, col.MESSAGES: messages, "corrupted": False}
            for number, (split, messages) in enumerate(zip(splits, good, strict=False))
        ]
    corrupt(chosen, options.corrupted)
    return chosen


def corrupt(rows: Sequence[Row], share: float) -> None:
    """Give a share of the training rows the response of another such row of their source."""
    for kind in KINDS:
        train = [row for row in rows if (row[col.SOURCE], row[col.SPLIT]) == (kind, col.TRAIN)]
        wrong = random.Random(1).sample(train, round(share * len(train)))
        replies = [row[col.MESSAGES][-1] for row in wrong]
        for row, reply in zip(wrong, replies[1:] + replies[:1], strict=True):
            row[col.MESSAGES], row["corrupted"] = [*row[col.MESSAGES][:-1], reply], True


def render(path: str, rows: Sequence[Row]) -> list[Text]:
    """Render every row: its tokens, and where its labels are."""
    from ual_ray.models.chat import IGNORE_INDEX, load_renderer

    renderer, texts = load_renderer(path, False), []
    for row in rows:
        (rendered,) = renderer.sequences(row[col.MESSAGES])
        labels = np.array(rendered.labels, dtype=np.int64)
        texts.append(Text(np.array(rendered.input_ids, dtype=np.int64), np.flatnonzero(labels[1:] != IGNORE_INDEX) + 1))
    return texts


def counts_of(texts: Sequence[Text]) -> Numbers:
    """Count every text's labels."""
    return np.array([len(text.positions) for text in texts], dtype=np.float64)


def sums_of(model: ProbedModel, texts: Sequence[Text], adjustments: Mapping[str, Adjustment]) -> dict[str, Numbers]:
    """Sum over the labels of every text the NLL under each adjustment; with one called nll, Brier score and errors too."""
    owner = np.repeat(np.arange(len(texts)), [len(text.positions) for text in texts])
    names = [*adjustments, *(("brier", "errors") if "nll" in adjustments else ())]
    tokens = {name: np.empty(len(owner)) for name in names}
    with torch.inference_mode():
        for states in model.states(texts, lambda done: None):
            for rows, logits, labels in logits_in_chunks(model.head, states.after, states.labels):
                places = states.places[rows]
                for name, adjustment in adjustments.items():
                    logs = torch.log_softmax(remove_floor(logits, adjustment.floor) / adjustment.temperature, dim=1)
                    at_label = logs.gather(1, labels[:, None]).squeeze(1)
                    tokens[name][places] = -at_label.double().cpu().numpy()
                    if name == "nll":
                        brier = torch.linalg.vector_norm(logs.exp(), dim=1).square() - 2 * at_label.exp() + 1
                        tokens["brier"][places] = brier.double().cpu().numpy()
                        tokens["errors"][places] = (logits.argmax(1) != labels).double().cpu().numpy()
    return {name: np.bincount(owner, values, len(texts)).astype(np.float64) for name, values in tokens.items()}


def measured(model: ProbedModel, rows: Sequence[Row], texts: Sequence[Text]) -> dict[str, Any]:
    """Fit temperature and floor on the validation rows; measure the test rows."""
    validation, test = ([text for row, text in zip(rows, texts, strict=True) if row[col.SPLIT] == split] for split in HELD_OUT)
    scaled, adjusted = fitted(model, validation)
    sums = sums_of(model, test, {"nll": Adjustment(), "nll_scaled": scaled, "nll_adjusted": adjusted})
    return {"temperature": scaled.temperature, "adjusted": [adjusted.temperature, adjusted.floor], **sums}


HELD_OUT = (col.VALIDATION, col.TEST)


@torch.inference_mode()
def fitted(model: ProbedModel, texts: Sequence[Text]) -> tuple[Adjustment, Adjustment]:
    """Fit a temperature alone, and with a floor, to the texts."""
    from ual_ray.calibrate.probed_model import temperature_of

    states = list(model.states(texts, lambda done: None))
    hidden, labels = torch.cat([part.after for part in states]), torch.cat([part.labels for part in states])
    chosen = torch.linspace(0, len(labels) - 1, min(len(labels), FITTED_TOKENS), device=hidden.device).long()
    hidden, labels = hidden[chosen], labels[chosen]
    temperature = temperature_of(model.head, hidden, labels)
    chunks = [(logits, own) for _, logits, own in logits_in_chunks(model.head, hidden, labels)]
    return Adjustment(temperature), fit_adjustment(chunks, temperature)


FITTED_TOKENS = 8192 if CUDA else 512


def run_case(
    options: argparse.Namespace,
    path: str,
    rows: Sequence[Row],
    texts: Sequence[Text],
    uncertainty: Numbers,
    lengths: Numbers,
    arm: str,
    seed: int,
    file: Path,
) -> None:
    """Train an arm with a seed, and measure the exported model."""
    import pyarrow.fs

    from ual_ray.run.metrics_log import read_metrics
    from ual_ray.train.loop import TrainingJob, train_worker

    started, work = time.monotonic(), options.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    alpha = write_tokens(work / "tokens", rows, texts, uncertainty, lengths, ARMS[arm], seed, options.length)
    config = TrainConfig(
        num_workers=1,
        gpus_per_worker=int(CUDA),
        dtype=options.dtype,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        packing=True,
        max_length=options.length,
        global_batch_size=options.packs,
        micro_batch_size=options.packs,
        reshard_after_forward=False,
        checkpoint_every=None,
    )
    job = TrainingJob(config, path, str(work / "tokens"), str(work), seed)
    outcome = train_worker(job, DEVICE, pyarrow.fs.LocalFileSystem(), str(work / "checkpoints"))
    assert outcome.ending == "finished", outcome
    lines = read_metrics(work / col.METRICS_FILE)
    trained = time.monotonic() - started
    found = measured(ProbedModel(str(work / col.MODEL_FOLDER), "float32", str(DEVICE)), rows, texts)
    curve = [[line["step"], line[col.VALIDATION_NLL]] for line in lines if col.VALIDATION_NLL in line]
    facts = {
        "arm": arm,
        "seed": seed,
        "mean alpha per row": float(alpha.mean()),
        "mean alpha per token, last step": lines[-1]["mean_alpha"],
        "validation nll by step": curve,
        "training nll": lines[-1]["nll"],
        "tokens per second": float(np.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line])),
        "seconds": [trained, time.monotonic() - started],
    }
    write_case(file, found, rows, texts, facts)
    shutil.rmtree(work)
    print(json.dumps(facts), flush=True)


def write_tokens(
    folder: Path,
    rows: Sequence[Row],
    texts: Sequence[Text],
    uncertainty: Numbers,
    lengths: Numbers,
    arm: ArmConfig,
    seed: int,
    length: int,
) -> Numbers:
    """Write the rows to train on and to validate with as the token store has them; return the alphas of training rows."""
    import pyarrow as pa

    from ual_ray.models.chat import IGNORE_INDEX
    from ual_ray.smooth.maps import assign_alpha

    train = np.array([row[col.SPLIT] == col.TRAIN for row in rows])
    sources = np.array([row[col.SOURCE] for row in rows])
    alpha = np.zeros(len(rows))
    alpha[train] = assign_alpha(uncertainty[train], arm, seed, lengths[train], sources[train])
    folder.mkdir(parents=True)
    table = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        labels = np.full(len(text.input_ids), IGNORE_INDEX)
        labels[text.positions] = text.labels
        own = {col.ID: row[col.ID], col.SPLIT: row[col.SPLIT], col.ALPHA: alpha[number], col.UNCERTAINTY: uncertainty[number]}
        ids = {col.INPUT_IDS: text.input_ids[:length], col.LABELS: labels[:length]}
        table.append(own | ids | {col.TARGET_TOKENS: int((labels[1:length] != IGNORE_INDEX).sum())})
    kept = [row for row in table if row[col.SPLIT] != col.TEST and row[col.TARGET_TOKENS]]
    with pa.OSFile(str(folder / f"rows{col.TOKENS_SUFFIX}"), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(kept, col.TOKENS))
    return alpha[train]


def elicited(rows: Sequence[Row], uncertainty: Numbers, options: argparse.Namespace) -> dict[str, Any]:
    """Describe the data and the elicitor's scores, with their AUROC for corrupted responses where there are some."""
    from ual_ray.stats.score_quality import auroc

    train = np.array([row[col.SPLIT] == col.TRAIN for row in rows])
    wrong = np.array([row["corrupted"] for row in rows])
    found: dict[str, Any] = {
        "command": " ".join(["bench/real_text.py", *(word for word in sys.argv[1:] if "/" not in word)]),
        "corrupted": options.corrupted,
        "device": torch.cuda.get_device_name(0) if CUDA else "cpu",
        "torch": torch.__version__,
        "rows": {split: sum(row[col.SPLIT] == split for row in rows) for split in col.SPLITS},
        "mean uncertainty": {
            kind: float(uncertainty[train & np.array([row[col.SOURCE] == kind for row in rows])].mean()) for kind in KINDS
        },
    }
    if wrong.any():
        for kind in KINDS:
            own = train & np.array([row[col.SOURCE] == kind for row in rows])
            found[f"AUROC of corrupted responses, {kind}"] = auroc(uncertainty[own], ~wrong[own])
    return found


def write_case(
    file: Path, found: Mapping[str, Any], rows: Sequence[Row], texts: Sequence[Text], facts: Mapping[str, Any]
) -> None:
    """Write one case: sums per test question, and facts as JSON."""
    test = np.array([row[col.SPLIT] == col.TEST for row in rows])
    facts = {**facts, "temperature": found["temperature"], "adjusted": found["adjusted"]}
    np.savez_compressed(
        file,
        facts=np.array(json.dumps(facts)),
        kind=np.array([row[col.SOURCE] for row in rows])[test],
        tokens=counts_of(texts)[test],
        **{name: found[name] for name in MEASURES},
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
