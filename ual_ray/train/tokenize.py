"""Render smoothed rows to tokens with Ray Data; rows that cannot be trained on are dropped and counted by reason.

Rows are written as Arrow files that `token_store` maps; actors return only counts and the ids of dropped rows. A few rows are
rendered in this process, as an actor takes longer to start. Nothing is sorted or shuffled: the store orders rows by id,
independent of their blocks.
"""

import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc

from ual_ray import columns as col
from ual_ray.config import Config, TrainConfig
from ual_ray.config.files import read_json, sha256, write_json, write_sums, write_text
from ual_ray.config.keys import affecting
from ual_ray.errors import UserError
from ual_ray.formatting import count_list, plural
from ual_ray.models.chat import LARGER_TOKENIZER, RENDERING_VERSION, RESIZE, Rendered, load_renderer, without_embedding
from ual_ray.models.resolve import model_fingerprint, resolve_model, vocabulary_size
from ual_ray.models.truncate import cut, trained_tokens
from ual_ray.parquet import RowFiles, checked
from ual_ray.train.given_rows import check_columns, check_own_ids, check_values
from ual_ray.train.token_store import check_store

TOKENS_FOLDER = "tokens"
RENDERED_FILE = "rendered.json"
# One line per dropped row: its id, the reason, and the chat template's error, separated by tabs.
DROPPED_FILE = "dropped_ids.txt"

# Reasons for dropping a row.
NOT_RENDERABLE = "not_renderable"
OVERLONG = "overlong"
NO_TARGET = "no_target"
NO_EMBEDDING = "no_embedding"
REASON = "reason"
REMEDIES = {
    NOT_RENDERABLE: "correct the rows that the chat template or the tokenizer refuses, or train another model",
    OVERLONG: "raise train.max_length",
    NO_TARGET: "raise train.max_length",
}

# Enough blocks that all actors finish at about the same time, few enough that a store is never thousands of files.
SMALLEST_BLOCK = 500
# At most so many rows are rendered in this process, in about a second.
ROWS_IN_PROCESS = 500
FILES_AT_MOST = 256
# Rows at a time: tokens as Python numbers take ten times their size in a file.
ROWS_PER_BATCH = 500

logger = logging.getLogger(__name__)

# endless_rows: rows of which no end of turn is trained, because the chat template has none.
COUNTED = ("train_rows", "validation_rows", "sequences", "truncated_rows", "endless_rows", "train_tokens")
# The SHA-256 of a block's file, by its name.
SUMS = "sums"
SUMMARY = pa.schema(
    [
        *((name, pa.int64()) for name in COUNTED),
        (SUMS, pa.map_(pa.string(), pa.string())),
        ("dropped", pa.list_(pa.struct([(col.ID, pa.string()), (REASON, pa.string()), (col.ERROR, pa.string())]))),
    ]
)


class Dropped(Exception):
    """A row that cannot be trained on, and the reason."""

    def __init__(self, reason: str, error: str = "") -> None:
        """Take one of this module's reasons, and the text of the underlying error."""
        super().__init__(reason)
        self.reason, self.error = reason, error


class Render:
    """Renders rows of (messages, alpha) to (input_ids, labels, alpha), writes them, and returns the counts."""

    def __init__(self, model: str, settings: TrainConfig, trust_remote_code: bool, folder: Path) -> None:
        """Load the tokenizer and the size of the vocabulary, once per actor, which has one core."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        path = resolve_model(model)
        self._renderer = load_renderer(path, trust_remote_code)
        self._vocabulary = vocabulary_size(path, trust_remote_code)
        self._settings = settings
        self._folder = folder

    def __call__(self, block: pa.Table) -> pa.Table:
        """Render a block into one file, named by its rows, so that a retry replaces it."""
        counts: Counter[str] = Counter()
        dropped: list[dict[str, str]] = []
        name = col.digest([block[col.SPLIT].to_pylist(), block[col.ID].to_pylist()]) + col.TOKENS_SUFFIX
        part = self._folder / f"{name}.part"
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, col.TOKENS) as writer:
            for batch in block.to_batches(max_chunksize=ROWS_PER_BATCH):
                rows = list(self._render(batch, counts, dropped))
                writer.write_batch(pa.RecordBatch.from_pylist(rows, col.TOKENS))
        summary = {**{key: counts[key] for key in COUNTED}, SUMS: {name: sha256(part)} if counts else {}, "dropped": dropped}
        if counts:
            part.replace(self._folder / name)
        else:
            part.unlink()
        return pa.Table.from_pylist([summary], SUMMARY)

    def _render(self, batch: pa.RecordBatch, counts: Counter[str], dropped: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for row in batch.to_pylist():
            try:
                sequences, truncated = self._sequences(row)
            except Dropped as why:
                dropped.append({col.ID: row[col.ID], REASON: why.reason, col.ERROR: why.error})
                continue
            counts[f"{row[col.SPLIT]}_rows"] += 1
            counts["sequences"] += len(sequences)
            counts["truncated_rows"] += truncated
            counts["endless_rows"] += not any(map(self._renderer.ends_turn, sequences)) and not truncated
            counts["train_tokens"] += sum(len(one.input_ids) for one in sequences) if row[col.SPLIT] == col.TRAIN else 0
            for one in sequences:
                # Validation rows have no alpha, only scored rows have an uncertainty, and null is a weight of 1.
                yield {
                    col.ID: row[col.ID],
                    col.SPLIT: row[col.SPLIT],
                    col.ALPHA: row.get(col.ALPHA) or 0.0,
                    col.LOSS_WEIGHT: row.get(col.LOSS_WEIGHT),
                    col.UNCERTAINTY: row.get(col.UNCERTAINTY),
                    col.INPUT_IDS: one.input_ids,
                    col.LABELS: one.labels,
                    col.TARGET_TOKENS: trained_tokens(one),
                }

    def _sequences(self, row: dict[str, Any]) -> tuple[list[Rendered], bool]:
        """Render one row: one sequence or, with some chat templates, one per reply; and whether any was truncated.

        A sequence that cannot be trained on is left out, and counts as truncated. Raises Dropped when none is left.
        """
        try:
            rendered = self._renderer.sequences(row[col.MESSAGES])
        except ValueError as error:
            raise Dropped(NOT_RENDERABLE, str(error)) from error
        if not rendered:
            raise Dropped(NO_TARGET)
        if outside := without_embedding(rendered, self._vocabulary):
            raise Dropped(NO_EMBEDDING, outside)
        fitting = [kept for one in rendered if (kept := cut(one, self._settings)) is not None]
        if not fitting:
            raise Dropped(OVERLONG)
        trained = [one for one in fitting if trained_tokens(one)]
        if not trained:
            raise Dropped(NO_TARGET)
        return trained, trained != rendered


def render(config: Config, texts: Path, rows: Path | None, folder: Path, *, shared: bool = False) -> dict[str, Any]:
    """Render the training rows of `texts`, and the validation rows of `rows`, into `folder`/tokens; return the counts.

    shared: by arms, whose alphas are tables of their own; otherwise the texts have alphas.
    `train_rows`, `validation_rows`, `dropped_rows`, `dropped_share` (of all rows, in [0, 1]), `dropped_reasons` (reason to
    rows; their ids are in DROPPED_FILE), `truncated_rows` (kept, but cut), `train_tokens`. The folder is created atomically;
    if it exists for the same rows and settings, and is not damaged, nothing is rendered again.
    Raises UserError when no training row is left.
    """
    tokens = folder / TOKENS_FOLDER
    made_from = _made_from(config, texts, rows)
    found = _rendered(tokens)
    if found.get("made_from") == made_from:
        counts = found["counts"]
    else:
        part = tokens.with_name(f"{TOKENS_FOLDER}.part")
        for old in (tokens, part):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
        counts = _count(_summaries(config, texts, rows, part, [] if shared else [col.ALPHA]), folder / DROPPED_FILE)
        sums = counts.pop(SUMS)
        _check_files(part, counts["sequences"])
        write_json(part / RENDERED_FILE, {"made_from": made_from, "counts": counts})
        write_sums(part, sums | {RENDERED_FILE: sha256(part / RENDERED_FILE)})
        part.replace(tokens)
    if not counts["train_rows"]:
        raise UserError(
            "no training row is left",
            got=f"dropped: {describe_dropped(counts)}; their ids are in {folder / DROPPED_FILE}",
            expected=f"rows with a response within train.max_length = {config.train.max_length} tokens",
            fix=remedy(counts["dropped_reasons"], col.TRAIN),
        )
    return counts


def _rendered(tokens: Path) -> Any:
    """Read the description of a finished folder; empty if there is none, or when it is damaged."""
    try:
        check_store(tokens)
        return read_json(tokens / RENDERED_FILE) or {}
    except UserError as error:
        logger.warning("rendering the rows again: %s", error)
        return {}


def render_all(config: Config, texts: Path, rows: Path | None, folder: Path, *, shared: bool = False) -> dict[str, Any]:
    """Render as `render` does.

    Raises UserError also when more rows are dropped than train.max_dropped_share allows, or all of validation that is needed.
    """
    counts, settings = render(config, texts, rows, folder, shared=shared), config.train
    if counts["dropped_share"] > settings.max_dropped_share:
        raise UserError(
            f"{counts['dropped_rows']} rows cannot be trained on: {describe_dropped(counts)}",
            got=f"their ids are in {folder / DROPPED_FILE}",
            expected=f"a share of at most train.max_dropped_share = {settings.max_dropped_share}",
            fix=f"{remedy(counts['dropped_reasons'], col.TRAIN)}; or raise train.max_dropped_share to train without them",
        )
    if rows is not None and not counts["validation_rows"]:
        got = f"dropped: {describe_dropped(counts)}; their ids are in {folder / DROPPED_FILE}"
        check_measured(settings, got, counts["dropped_reasons"])
    return counts


def check_measured(settings: TrainConfig, got: str, reasons: Iterable[str]) -> None:
    """Raise UserError for settings that need validation rows where all of these are dropped."""
    if settings.needs_validation:
        raise UserError(
            f"{', '.join(settings.needs_validation)}: no validation row can be measured",
            got=got,
            expected=f"validation rows with a response within train.max_length = {settings.max_length} tokens",
            fix=f"{remedy(reasons, col.VALIDATION)}; or drop these settings",
        )


def remedy(reasons: Iterable[str], split: str) -> str:
    """Write what to do about rows of a split that were dropped for these reasons; none = there is no row."""
    return "; ".join(dict.fromkeys(map(REMEDIES.__getitem__, reasons))) or f"give rows of the split '{split}'"


def describe_dropped(counts: Mapping[str, Any]) -> str:
    """Write how many rows were dropped, by reason, with the most frequent error of the chat template."""
    error = f" ({counts['dropped_error']})" if counts["dropped_error"] else ""
    return f"{count_list(counts['dropped_reasons'])}{error}"


def check_vocabulary(dropped: Iterable[Mapping[str, str]]) -> None:
    """Raise UserError when a dropped row has tokens that the model has no embedding for."""
    errors = [row[col.ERROR] for row in dropped if row[REASON] == NO_EMBEDDING]
    if errors:
        raise UserError(LARGER_TOKENIZER, got=f"{plural(len(errors), 'row')}: {errors[0]}", fix=RESIZE)


def _summaries(config: Config, texts: Path, rows: Path | None, folder: Path, needed: list[str]) -> Iterator[dict[str, Any]]:
    """Render in this process, or run the actors where there are many rows; yield the counts block by block."""
    splits = [(texts, col.TRAIN, _columns(texts, needed))]
    if rows is not None:
        splits.append((rows, col.VALIDATION, _columns(rows, [])))
        check_own_ids(rows, col.VALIDATION)
    total = sum(RowFiles(path).count_rows() for path, _, _ in splits)
    arguments = (config.model, config.train, config.trust_remote_code, folder.resolve())
    if total > ROWS_IN_PROCESS:
        yield from _by_actors(splits, total, arguments)
        return
    render_block = Render(*arguments)
    for path, split, columns in splits:
        chosen = RowFiles(path).to_table(columns=columns, filter=pyarrow.dataset.field(col.SPLIT) == split)
        yield from render_block(chosen).to_pylist()


def _by_actors(
    splits: Sequence[tuple[Path, str, list[str]]], total: int, arguments: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    import ray.data

    from ual_ray.run.cluster import SPARE_LOGICAL_CPUS
    from ual_ray.run.machines import TASKS, here, read_files

    first, *others = (
        read_files(checked(path), columns, pyarrow.dataset.field(col.SPLIT) == split) for path, split, columns in splits
    )
    dataset = first.union(*others) if others else first
    options = here()
    cores = TASKS if options else max(1, int(ray.cluster_resources().get("CPU", 1)) - SPARE_LOGICAL_CPUS)
    block = max(SMALLEST_BLOCK, math.ceil(total / FILES_AT_MOST))
    summaries = dataset.repartition(target_num_rows_per_block=block).map_batches(
        Render,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(cores, math.ceil(total / block) or 1)),
        **(options or {"num_cpus": 1}),
    )
    return summaries.iter_rows()


def _columns(path: Path, needed: list[str]) -> list[str]:
    """List the columns to read of the rows of one split: their messages, and alpha, weight and uncertainty if present."""
    if col.ALPHA in (needed := check_columns(path, needed)):
        check_values(path)
    names = RowFiles(path).schema.names
    return [*needed, *(name for name in (col.UNCERTAINTY, col.LOSS_WEIGHT) if name in names)]


def _count(summaries: Iterator[dict[str, Any]], dropped_file: Path) -> dict[str, Any]:
    """Sum the counts, collect the files' checksums, and write the dropped rows' ids in order."""
    totals, sums = Counter[str](), dict[str, str]()
    dropped: list[tuple[str, str, str]] = []
    for summary in summaries:
        check_vocabulary(summary["dropped"])
        sums.update(summary.pop(SUMS))
        dropped += [(row[col.ID], row[REASON], row[col.ERROR]) for row in summary.pop("dropped")]
        totals.update(summary)
    lines = ("\t".join([row, reason, " ".join(error.split())]).rstrip() + "\n" for row, reason, error in sorted(dropped))
    write_text(dropped_file, "".join(lines))
    rows = totals["train_rows"] + totals["validation_rows"] + len(dropped)
    return {
        **{name: totals[name] for name in COUNTED},
        SUMS: sums,
        "dropped_rows": len(dropped),
        "dropped_share": len(dropped) / max(1, rows),
        "dropped_reasons": dict(sorted(Counter(reason for _, reason, _ in dropped).items())),
        "dropped_error": most_frequent(error for _, _, error in dropped if error),
    }


def most_frequent(errors: Iterable[str]) -> str:
    """Return the error that occurs most often; "" without any."""
    return next((error for error, _ in Counter(errors).most_common(1)), "")


def _check_files(folder: Path, rows: int) -> None:
    """Raise RuntimeError when the files do not contain exactly the counted sequences."""
    found = 0
    for file in folder.glob(f"*{col.TOKENS_SUFFIX}"):
        with pa.memory_map(str(file)) as mapped:
            found += pa.ipc.open_file(mapped).read_all().num_rows
    if found != rows:
        raise RuntimeError(f"{rows} sequences were rendered, {folder} holds {found}")


def _made_from(config: Config, texts: Path, rows: Path | None) -> str:
    """Hash what the tokens depend on; files count by name, size and time, so that they need not be read."""
    files = [file for path in (texts, rows) if path for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    how = [RENDERING_VERSION, model_fingerprint(config.model), affecting(config.train, "tokens"), config.trust_remote_code]
    return col.digest([col.TOKENS.to_string(), stats, how])
