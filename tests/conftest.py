"""A real tokenizer, trained here on a few sentences, with chat templates in the styles of well-known models."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, chdir, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from worker_forks import ALL, forked_workers

# The same examples every time, however slow the machine: a red run means a change, not luck.
settings.register_profile("unit", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")

REPOSITORY = Path(__file__).parents[1]
UNITS = REPOSITORY / "tests" / "unit"
# Most of a test's time is the start of processes: Ray starts none in advance, and keeps those that wait for work. What looks
# for new logs ten times a second, and at all processes every few seconds, does so less often; what looks whether a training
# has ended, more often.
os.environ.update(
    RAY_LOG_MONITOR_MANY_FILES_THRESHOLD="0",
    REPORTER_UPDATE_INTERVAL_MS="30000",
    RAY_enable_worker_prestart="0",
    RAY_prestart_worker_first_driver="0",
    RAY_idle_worker_killing_time_threshold_ms="30000",
    RAY_worker_niceness="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",
)
# One thread a process, as two files are tested at a time: threads that wait for one another spin, which multiplies the CPU time
# of small products on a busy machine. What needs more threads sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray gives the processes of a node seconds to start, which a machine with much to do may exceed.
STARTS_OF_RAY = 4
# Two files are tested at a time: the longest first, so that both ends come at about the same time. Units by folder and name.
LONGEST_FIRST = (
    *("test_kills", "test_training_kills", "test_cluster_kills", "test_multi_node", "test_s3_output", "test_fsdp"),
    *("test_wheel", "test_submit", "test_pipeline", "test_training", "test_gpu_check", "test_dry_run", "test_elicit_data"),
    *("test_vllm", "test_evaluate", "test_endpoint", "test_elicit", "test_experiment", "test_mlflow_server"),
)
LONGEST_UNITS = (
    *(
        "train/estimate/test_counted_memory",
        "experiment/test_known_truth",
        "train/test_exported_step",
        "train/test_worker",
        "train/test_compiled",
        "test_adversarial_text",
        "stats/test_unknown",
        "test_recipes",
        "train/test_compat_torch",
        "test_fuzz",
        "elicit/test_shared_store",
        "report/test_page_data",
    ),
    *("judge/test_win_rate", "mirror/test_transfer", "bench/test_cases", "test_tables_of_others", "train/test_base_dtype"),
)

SENTENCES = [
    "Why is the sky blue? Sunlight is a mix of colours, and blue light is scattered most.",
    "Name a colour. Blue. And one more, please. Green is a colour too [as INST said].",
    "You are a helpful assistant. Reply with 0 1 2 3 4 5 6 7 8 9 or A B and nothing else.",
    "user assistant system model user assistant system model [INST] Name a colour. [/INST] [INST] [/INST]",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # as Mistral-7B-Instruct-v0.1: [INST] is plain text, a blank follows the end of the turn
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As Qwen3, which drops the reasoning of all turns but the last.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last or m['role'] != 'assistant' else '(left out)' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "rewriting": REWRITING,
    "none": None,
}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>"}
BEGIN, END = "<s>", "</s>"
SPECIAL_TOKENS = [
    *(BEGIN, END, "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Have SIGINT raise KeyboardInterrupt, also where the tests were started with it ignored, as in a script's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Undo what a test does to the environment: a command run in process sets Ray's token mode for good where a token is."""
    kept = dict(os.environ)
    yield
    if os.environ != kept:
        os.environ.clear()
        os.environ.update(kept)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, those of units last."""

    @cache
    def place(path: Path) -> tuple[bool, int]:
        unit = path.is_relative_to(UNITS)
        longest = LONGEST_UNITS if unit else LONGEST_FIRST
        name = str(path.relative_to(UNITS).with_suffix("")) if unit else path.stem
        return unit, longest.index(name) if name in longest else len(longest)

    items.sort(key=lambda item: place(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector the objects of the imports, which stay until the process ends; and have it run less often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.set_threshold(50_000)
        gc.enable()


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    output: str


Ual = Callable[..., Finished]


@pytest.fixture(scope="session")
def ual_process() -> Ual:
    """Run `ual ...` in a process of its own, as a user does."""

    def run(*arguments: object, cwd: Path = REPOSITORY, **environment: str) -> Finished:
        command = [sys.executable, "-m", "ual_ray", *map(str, arguments)]
        variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | environment
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
        return Finished(done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="session")
def tables_made_once() -> Iterator[None]:
    """Have MLflow make the tables of a SQLite store once in this process, and copy them to its other new stores."""
    from mlflow.store.db import utils

    make, tables, lock = utils._initialize_tables, sqlite3.connect(":memory:", check_same_thread=False), Lock()

    def make_or_copy(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            make(engine)
            return
        with lock, closing(engine.raw_connection()) as connection:
            if tables.execute("select count(*) from sqlite_master").fetchone() == (0,):
                make(engine)
                connection.driver_connection.backup(tables)
            else:
                tables.backup(connection.driver_connection)

    with closing(tables), mock.patch.object(utils, "_initialize_tables", make_or_copy):
        yield


@pytest.fixture(scope="session")
def ual_without_ray(tmp_path_factory: pytest.TempPathFactory, tables_made_once: None) -> Ual:
    """Run `ual ...` in this process: its imports are paid once."""
    from ual_ray.cli import app

    printed = tmp_path_factory.mktemp("printed") / "printed.txt"

    def run(*arguments: object, cwd: Path = REPOSITORY) -> Finished:
        with (
            mock.patch.dict(os.environ),
            # Ray reads its token mode once per process.
            mock.patch.object(app, "RAY_TOKEN", printed.parent / "no_token"),
            mock.patch.object(sys, "argv", ["ual"]),
            chdir(cwd),
            _signals_restored(),
            _printing_to(printed),
        ):
            os.environ.pop("RAY_ADDRESS", None)
            code = _exit_code(lambda: app.main(*map(str, arguments)))
        return Finished(code, printed.read_text(errors="replace"))

    return run


@pytest.fixture(scope="session")
def ual(ual_without_ray: Ual, local_ray: None) -> Ual:
    """Run `ual ...` in this process, on the Ray of all tests of this process."""
    return ual_without_ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start a local Ray that forks its workers, and stop it when all tests of this process are over."""
    import ray

    from ual_ray.config import RuntimeConfig
    from ual_ray.run.cluster import ray_cluster

    init = ray.init

    def start(**options: Any) -> None:
        # What its workers print arrives late: it would be among what the next command prints.
        init(**options | {"log_to_driver": False})

    with ExitStack() as cluster:
        cluster.enter_context(forked_workers(*ALL))
        for left in reversed(range(STARTS_OF_RAY)):
            try:
                with _signals_restored(), mock.patch.object(ray, "init", start):
                    cluster.enter_context(ray_cluster(RuntimeConfig()))
                break
            except Exception:
                ray.shutdown()
                if not left:
                    raise
        yield


def _exit_code(command: Callable[[], None]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Put back the handlers of the signals that a command and Ray handle."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Redirect what this process and its children print to a new file."""
    streams, kept = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    _flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        yield
    finally:
        _flush()
        sys.stdout, sys.stderr = streams
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


# --- a tokenizer -----------------------------------------------------------------------------------------------------


@cache
def _tokenizer(style: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    # As Llama and Mistral do: encoding with special tokens puts <s> in front, which a template has already done.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        chat_template=TEMPLATES[style],
        name_or_path="tiny",
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[str], Any]:
    """Get the tokenizer with the chat template of a style: chatml, llama3, mistral, gemma, rewriting, none."""
    return _tokenizer


@pytest.fixture(scope="session")
def end_of_turn() -> dict[str, str]:
    """Get the token that ends the assistant's turn, per style that has one."""
    return END_OF_TURN
