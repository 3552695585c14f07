"""Fail-fast validation: check data, models, prompts, settings and memory before anything expensive starts."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

import psutil

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE, BenchmarkConfig, Config, DataConfig, TrainConfig
from ual_ray.config.files import try_writing
from ual_ray.config.keys import check_added
from ual_ray.config.names import AUTO, DEMO
from ual_ray.config.registry import LOSSES, REMOTE_ENGINES
from ual_ray.config.section import Section
from ual_ray.data.canonical import check_splits, grouped, split_of, usable_rows
from ual_ray.data.formats import BadRow
from ual_ray.data.labels import read_labels
from ual_ray.data.peek import DataPeek, peek
from ual_ray.elicit.adjust import check_labels
from ual_ray.elicit.estimators import check_estimates, make_estimators
from ual_ray.elicit.grouping import check_nli_model
from ual_ray.engines.vllm_engine import adapter_rank, check_parallel
from ual_ray.errors import UserError
from ual_ray.formatting import GIB
from ual_ray.mirror.remote import open_place
from ual_ray.models.resolve import check_found, check_model, parameter_count, resolve_model, too_few_entries
from ual_ray.run import StageName
from ual_ray.run.precision import ON_GPUS
from ual_ray.train.estimate.state import heaviest, least_bytes
from ual_ray.train.mixture import check_names

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What an engine's process needs in addition to its weights: interpreter, libraries, activations of a small batch.
ENGINE_OVERHEAD_GB = 1.0
# Of data that is not read completely: how many files, and rows of each, are looked at for the sources of train.mixture.
MIXTURE_FILES, MIXTURE_ROWS = 20, 100


def check(
    config: Config, stages: Set[StageName] = frozenset({"elicit", "train", "evaluate"}), *, all_sources: bool = True
) -> None:
    """Raise UserError for data or models that cannot be loaded, and for stages that do not fit into this machine's memory.

    all_sources: training takes the rows of every source; `check_scenarios` checks train.mixture where scenarios choose some.
    """
    check_added(config.engine, *used_sections(config, stages))
    seen = check_data(config.data) if "elicit" in stages else None
    if stages & {"train", "evaluate"}:
        # What only a server answers for has a name that only the server knows.
        served = config.engine.remote and "train" not in stages
        (check_model if served else check_found)(config.model, "model")
    if "elicit" in stages:
        check_elicitor(config)
    if "train" in stages:
        check_train(config.train)
    check_compilers(config, stages)
    if {"train", "evaluate"} <= stages and config.train.lora.rank and not config.train.lora.merge:
        raise UserError(
            "train.lora.merge=false exports adapters alone, and evaluation needs whole models",
            fix="set train.lora.merge=true, or use `ual train`, which does not evaluate",
        )
    if {"elicit", "train"} <= stages:
        check_arms(config)
        check_validated(config.train, config.data.validation_share > 0)
        if seen is not None:
            check_tokens(config, seen)
            if config.train.mixture and all_sources:
                check_mixture(config.train.mixture, config.data, seen)
    if {"elicit", "evaluate"} <= stages:
        check_benchmarks(config, has_rows=True)
        check_harness(config.evaluate.lm_eval)
        if config.judge.model is not None:
            check_judged(config.evaluate.benchmarks)
            stages = stages | {"judge"}
    if "judge" in stages:
        check_judge(config)
    if config.runtime.check_memory and config.runtime.joined is None:
        check_memory(config, psutil.virtual_memory().available / GIB, stages)
    if config.runtime.check_memory and "train" in stages and config.train.gpus_per_worker:
        from ual_ray.train.estimate.dry_run import check_gpus  # with torch, which trainings on CPUs do not wait for

        check_gpus(config, arms="elicit" in stages, evaluated="evaluate" in stages)


def used_sections(config: Config, stages: Set[StageName]) -> list[Section]:
    """List the sections of stages that may name something of another package."""
    arms = {"elicit", "train"} <= stages
    return [
        *([config.data, config.elicit] if "elicit" in stages else []),
        *([config.train] if "train" in stages else []),
        *(config.arms.values() if arms else []),
        *(config.evaluate.benchmarks.values() if "evaluate" in stages else []),
    ]


def check_compilers(config: Config, stages: Set[StageName]) -> None:
    """Raise UserError where this machine is the cluster and lacks what layers or vLLM's GPU kernels are compiled with."""
    compiled = "train" in stages and config.train.compile
    engines = stages - {"train"} and config.engine.gpus_per_actor and config.engine.kind != "fake"
    if config.runtime.joined is not None or not (compiled or engines):
        return
    from ual_ray.train.model import check_compiler  # with torch, which other runs on CPUs do not wait for

    if compiled:
        check_compiler("cuda" if config.train.gpus_per_worker else "cpu")
    if engines:
        asked = f"vLLM (engine.gpus_per_actor={config.engine.gpus_per_actor:g})"
        check_compiler("cuda", asked, "use a server (engine.kind=openai)")


def check_elicitor(config: Config) -> None:
    """Raise UserError for an unusable elicitation model, endpoint, adapter, estimator, template, label file or store."""
    elicit = config.elicit
    estimators = make_estimators(elicit)
    check_estimates(estimators)
    if elicit.store is not None:
        open_place(elicit.store, "elicit.store", write=True)
    for key, value in (("data.reference", config.data.reference), ("elicit.examples", elicit.examples)):
        if value is not None and not any(estimator.shows_more for estimator in estimators.values()):
            raise UserError(
                f"{key} is read by verbalized estimators alone",
                got=f"elicit.estimators {list(estimators)}",
                fix=f"add verbalized_error to elicit.estimators, or leave {key} out",
            )
    if elicit.calibrate_with is not None:
        labels = read_labels(Path(elicit.calibrate_with).expanduser())
        right = sum(labels.values())
        check_labels(right, len(labels) - right, elicit.calibrate_with)
    if elicit.embedding_model is not None:
        check_found(elicit.embedding_model, "elicit.embedding_model")
    if elicit.nli_model is not None:
        check_found(elicit.nli_model, "elicit.nli_model")
        check_nli_model(elicit.nli_model)
    if config.engine.remote:
        REMOTE_ENGINES[config.engine.kind].check(config.engine, elicit.model)
        return
    check_found(elicit.model, "elicit.model")
    check_parallel(elicit.model, config.engine, "elicit.model")
    if elicit.adapter is not None:
        adapter_rank(elicit.adapter)


def check_benchmarks(config: Config, has_rows: bool) -> None:
    """Raise UserError for a benchmark without questions; `has_rows`: there is a test split for benchmarks without a path."""
    from ual_ray.evaluate import questions

    without = [name for name, benchmark in config.evaluate.benchmarks.items() if benchmark.path is None]
    if without and not has_rows:
        raise UserError(
            f"no questions for the benchmarks {', '.join(without)}: they have no path, and there is no test split",
            fix="give --rows (output of `ual elicit`), or set evaluate.benchmarks.NAME.path",
        )
    questions.check(config.evaluate.benchmarks, config.engine.max_model_len)


def check_harness(tasks: Sequence[str]) -> None:
    """Raise UserError for tasks of lm-evaluation-harness that it does not know, and where it is missing."""
    if tasks:
        from ual_ray.evaluate.lm_eval import check_tasks

        check_tasks(tasks)


def check_judge(config: Config) -> None:
    """Raise UserError for an unusable judge model or unusable prompts."""
    from ual_ray.judge.pairs import load_judge_prompts

    if config.judge.model is None:
        raise UserError("judge.model is not set", expected="a hub name, a directory or 'demo'", fix="set judge.model=NAME")
    load_judge_prompts(config.judge.templates)
    for model in config.judge.models:
        if config.engine.remote:
            REMOTE_ENGINES[config.engine.kind].check(config.engine, model)
        else:
            check_found(model, "judge.model" if model == config.judge.model else "judge.more_models")


def check_judged(benchmarks: Mapping[str, BenchmarkConfig]) -> None:
    """Raise UserError when every benchmark has gold answers, which leaves a judge nothing to compare."""
    from ual_ray.benchmarks import make_benchmarks

    found = make_benchmarks(benchmarks)
    if all(benchmark.metrics for benchmark in found.values()):
        raise UserError(
            "judge.model is set, and no benchmark has open-ended answers to compare",
            got=", ".join(f"{name} ({benchmark.kind})" for name, benchmark in found.items()) or "no benchmark",
            fix="add one, such as evaluate.benchmarks.chat.kind=open_ended engine.max_model_len=4096, or set judge.model=null",
        )


def check_train(train: TrainConfig) -> None:
    """Raise UserError for training settings that are inconsistent or unusable."""
    if train.gpus_per_worker not in (0, 1) and not (train.gpus_per_worker < 1 and train.num_workers == 1):
        raise UserError(
            "train.gpus_per_worker: a worker trains on exactly one GPU",
            got=train.gpus_per_worker,
            expected="0 (CPU) or 1; a fraction only if train.num_workers=1",
            fix="set train.gpus_per_worker=1, and train.num_workers to the number of GPUs",
        )
    if not LOSSES.is_own(train.loss):
        from ual_ray.train.token_losses import check_token_loss  # with torch, which other trainings do not wait for here

        check_token_loss(train)
    if train.continue_from:
        from ual_ray.train.step import first_checkpoint

        first_checkpoint(train)
    if train.storage and "://" not in train.storage:
        storage = Path(train.storage).expanduser()
        try:
            try_writing(storage)
        except OSError as error:
            raise UserError(
                "train.storage is not writable", got=f"{storage}: {error}", expected="a writable folder, or a new one"
            ) from error


def check_arms(config: Config) -> None:
    """Raise UserError for an arm whose uncertainty is not elicited, or whose loss or prior cannot be used."""
    elicited = (*config.elicit.estimators, ENSEMBLE)
    for name, arm in config.arms.items():
        if arm.uncertainty is not None and arm.uncertainty not in elicited:
            raise UserError(
                f"arms.{name}.uncertainty is not elicited",
                got=arm.uncertainty,
                expected=", ".join(elicited),
                fix=f"add it to elicit.estimators: [{', '.join((*config.elicit.estimators, arm.uncertainty))}]",
            )
        train = arm.training(config.train)
        if not LOSSES.is_own(train.loss):
            from ual_ray.train.token_losses import check_token_loss

            check_token_loss(train)
        if (prior := train.prior_file) is not None:
            from ual_ray.train.loss_inputs import read_prior  # with torch, which mistakes in other keys do not wait for

            read_prior(Path(prior).expanduser())


def check_validated(train: TrainConfig, validated: bool) -> None:
    """Raise UserError for settings that need a validation NLL when there are no validation rows."""
    if not validated and train.needs_validation:
        raise UserError(
            f"{', '.join(train.needs_validation)}: there are no validation rows",
            fix="give validation rows (`ual train --validation`, data.validation_share in `ual run`), or drop these settings",
        )


def check_mixture(weights: Mapping[str, float], data: DataConfig, seen: DataPeek) -> None:
    """Raise UserError for weights that are not of the sources of the training rows, as far as the first rows show these.

    Of data that is too large to be read completely, the first rows of the first files show only sources without a weight.
    """
    if seen.complete:
        rows = usable_rows(data, seen.pieces, seen.format_name)
    else:
        firsts = {piece.path: [piece] for piece in reversed(seen.pieces)}.values()
        parts = (usable_rows(data, pieces, seen.format_name) for pieces in islice(firsts, MIXTURE_FILES))
        rows = chain.from_iterable(islice(part, MIXTURE_ROWS) for part in parts)
    names = sorted({row[col.SOURCE] for row in rows if row[col.SPLIT] == col.TRAIN})
    check_names(weights, names, complete=seen.complete)


def check_tokens(config: Config, seen: DataPeek) -> None:
    """Raise UserError where one of the first rows has tokens that the model to train has no embedding for."""
    if config.model == DEMO or (entries := too_few_entries(path := resolve_model(config.model))) is None:
        return
    from ual_ray.models.chat import load_renderer, without_embedding  # with transformers, which other runs do not wait for
    from ual_ray.train.tokenize import NO_EMBEDDING, REASON, check_vocabulary

    renderer = load_renderer(path, config.trust_remote_code)
    rows = (messages for _, messages in seen.records if not isinstance(messages, BadRow))
    found = []
    for messages in rows:
        with suppress(ValueError):  # what the chat template refuses is not trained on
            found.append(without_embedding(renderer.sequences(messages), entries))
    check_vocabulary({REASON: NO_EMBEDDING, col.ERROR: error} for error in found if error)


def check_data(data: DataConfig) -> DataPeek:
    """Raise UserError for data that is missing, unreadable, empty or of an unknown format, judged by its first rows.

    Data small enough to be read completely is also checked for too many invalid rows and for empty splits.
    """
    seen = peek(data)
    if not seen.complete:
        return seen
    bad = [str(messages) for _, messages in seen.records if isinstance(messages, BadRow)]
    if len(bad) / len(seen.records) > data.max_bad_share:
        kinds = Counter(reason.split(":")[0] for reason in bad)
        raise UserError(
            f"{len(bad)} of {len(seen.records)} rows of {data.path} are bad",
            got=f"{dict(kinds)}, such as: {bad[0]}",
            expected=f"a share of at most data.max_bad_share = {data.max_bad_share}",
            fix="fix these rows, or raise data.max_bad_share to drop them",
        )
    usable = ((record, messages) for record, messages in seen.records if not isinstance(messages, BadRow))
    found = {split_of(grouped(record, col.content_id(messages), data), data) for record, messages in usable}
    check_splits(found, len(seen.records), data)
    return seen


def check_memory(config: Config, available_gb: float, stages: Set[StageName]) -> None:
    """Raise UserError when a stage on this machine's CPUs needs more memory than is free; models on the hub are not checked."""
    # A server runs elicitation and judging; models that are trained here are also evaluated here.
    served = config.engine.remote
    judge = config.judge
    needs = {
        "elicit": 0.0 if served else _engines(config, config.elicit.model, config.engine.dtype),
        "train": _training(config, heaviest(config) if "elicit" in stages else config.train),
        "evaluate": 0.0 if served and "train" not in stages else _engines(config, config.model, config.evaluate.dtype),
        "judge": 0.0 if served else max((_engines(config, model, judge.dtype) for model in judge.models), default=0.0),
    }
    fixes = {"train": "use a smaller model or train.lora.rank=16"}
    for stage, needed in needs.items():
        if stage in stages and needed > available_gb:
            fix = fixes.get(stage, "lower engine.max_actors or engine.kv_cache_gb")
            raise UserError(
                f"{stage} does not fit into memory",
                got=f"{needed:.1f} GB needed (estimate), {available_gb:.1f} GB free",
                fix=f"{fix}, use a cluster (runtime.address), or skip this check (runtime.check_memory=false)",
            )


def _engines(config: Config, model: str, dtype: str) -> float:
    if config.engine.kind == "fake" or config.engine.gpus_per_actor:
        return 0.0
    return actor_gb(config, model, dtype) * config.engine.max_actors


def actor_gb(config: Config, model: str, dtype: str) -> float:
    """Estimate the memory of an actor on CPUs: weights, KV cache and process; without the weights of models on the hub."""
    weights = (parameter_count(model) or 0) * dtype_bytes(dtype) / GIB
    return weights + config.engine.kv_cache_gb + ENGINE_OVERHEAD_GB


def dtype_bytes(dtype: str, gpus: float = 0) -> int:
    """Return the bytes of a number in a dtype; of `auto` on CPUs, where it is measured later, the most that it can be."""
    return BYTES[(ON_GPUS if gpus else "float32") if dtype == AUTO else dtype]


def _training(config: Config, train: TrainConfig) -> float:
    if train.gpus_per_worker:
        return 0.0
    return least_bytes(parameter_count(config.model) or 0, train) / GIB


def check_port(host: str, port: int) -> None:
    """Raise UserError when the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} is in use",
                got=error,
                fix="stop the process that listens there, or choose another --port",
            ) from error
