"""Fuzz targets of files that the package wrote and a disk or somebody changed, and of files that users write."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
import torch
import torch.distributed.checkpoint as dcp
from fuzz_source import ODD, Source, Target, of_bytes, scratch

from ual_ray import columns as col
from ual_ray.columns import Message, with_extra
from ual_ray.config import Config, DataConfig, EngineConfig
from ual_ray.config.files import read_sums, write_sums
from ual_ray.data.files import find_files
from ual_ray.elicit.prompts import load_prompts
from ual_ray.engines.vllm_engine import adapter_rank, check_parallel
from ual_ray.errors import UserError
from ual_ray.judge.alpaca_eval import read_model_outputs
from ual_ray.judge.pairs import load_judge_prompts
from ual_ray.models.chat import ChatRenderer, Rendered
from ual_ray.report.promote import read_findings
from ual_ray.run.output import OWNER_FILE, Workspace
from ual_ray.run.stage_cache import DONE_FILE, NEWEST_FILE, STARTED_FILE, newest, run_stage, stage_digest
from ual_ray.tracking.journal import Spool
from ual_ray.tracking.run_file import RUN_FILE, logged_model, read_run, resolve_run
from ual_ray.train.arrow_storage import Reader
from ual_ray.train.checkpoint import Checkpoints, newest_checkpoint
from ual_ray.train.progress import Progress
from ual_ray.train.token_store import TokenStore, check_store

# --- files of the package --------------------------------------------------------------------------------------------

INPUTS = {"rows": "0123456789abcdef", "seed": 1}
STORE = {"uri": "sqlite:///x.db", "experiment": "e"}


def saved_in(folder: Path) -> list[Any]:
    """List the checkpoints of a folder as a rank does."""
    checkpoints = object.__new__(Checkpoints)
    checkpoints._filesystem, checkpoints._root = pyarrow.fs.LocalFileSystem(), str(folder)
    return checkpoints._list()


def stage_done(folder: Path) -> Any:
    (folder / STARTED_FILE).write_text(json.dumps({"digest": stage_digest(INPUTS), "inputs": INPUTS}))
    return run_stage(folder, INPUTS, lambda: {})


# The file, what is in it, and what reads it.
STATES: Mapping[str, tuple[Any, Callable[[Path], Any]]] = {
    STARTED_FILE: ({"digest": stage_digest(INPUTS), "inputs": INPUTS}, lambda folder: run_stage(folder, INPUTS, lambda: {})),
    DONE_FILE: ({"figures": {"rows": 3}, "seconds": 1.5}, stage_done),
    OWNER_FILE: ({"data.path": "demo", "model": "demo"}, lambda folder: Workspace(folder).check_owner(Config())),
    RUN_FILE: ({"uri": "u", "local_id": "a", "run_id": None}, lambda folder: read_run(folder, "u")),
    f"model/../{RUN_FILE}": (
        {"uri": "u", "local_id": "a", "run_id": None},
        lambda folder: [logged_model(str(folder / "model"), "n", "d", "u"), resolve_run(folder, "a", "b")],
    ),
    "step-00000001-a/progress.json": (asdict(Progress("plan", 0, 3, best_loss=1.5, best_step=2)), saved_in),
    "checkpoints/step-00000001-a/progress.json": (asdict(Progress("plan", 0)), newest_checkpoint),
    "mlflow-spool/SPOOL/1.json": ({"kind": "metric", "run": "r", "content": {}, "file": None}, lambda folder: spooled(folder)),
    "report/findings.json": ({"version": 1}, read_findings),
    "checksums.sha256": ({}, lambda folder: read_sums(folder)),
}
SPOOL = Spool(Path("/x"), STORE).folder.name


def spooled(folder: Path) -> Any:
    return Spool(folder, STORE).first()


def state_of(data: bytes) -> Any:
    source = Source(data)
    name = source.pick(tuple(STATES))
    content, _ = STATES[name]
    if not source.number(3) and content:
        content = {**content, source.pick(tuple(content)): source.value(tuple(content), 2)}
    if not source.number(5):
        content = source.value((*content, "version"), 4)
    return name, source.damaged(json.dumps(content).encode())


def check_state(given: tuple[str, bytes]) -> None:
    """A file of the package that was changed is read, or named in an error."""
    name, content = given
    with scratch("here", b"") as place:
        folder = place.parent
        file = folder / name.replace("SPOOL", SPOOL)
        (folder / "model").mkdir()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        place.unlink()
        with suppress(UserError):
            STATES[name][1](folder)


def pointer_of(data: bytes) -> Any:
    return Source(data).text(("a", "/", "..", "\x00", "0123456789abcdef", "\n", " ", "~", "x" * 300, *ODD), 6)


def check_pointer(text: str) -> None:
    """The newest part of a folder is one of its parts."""
    with scratch(NEWEST_FILE, text.encode(errors="surrogatepass")) as file, suppress(UserError):
        found = newest(file.parent)
        assert found.resolve().is_relative_to(file.parent.resolve()) and isinstance(found.is_dir(), bool)


# --- rendered rows ---------------------------------------------------------------------------------------------------


@cache
def rendered_rows() -> bytes:
    rows = [
        {col.ID: f"{at:016x}", col.SPLIT: "train", col.ALPHA: 0.1 * at, col.LOSS_WEIGHT: None, col.UNCERTAINTY: 0.5}
        | {col.TARGET_TOKENS: 2, col.INPUT_IDS: [1, 2, 3 + at], col.LABELS: [-100, 2, 3 + at]}
        for at in range(4)
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, col.TOKENS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, col.TOKENS))
    return sink.getvalue().to_pybytes()


def check_tokens(content: bytes) -> None:
    """Rendered rows that were changed are refused before they are read: reading them could end the process."""
    with scratch("rows.arrow", content) as file:
        write_sums(file.parent, {file.name: hashlib.sha256(rendered_rows()).hexdigest()})
        try:
            check_store(file.parent)
        except UserError:
            assert content != rendered_rows()
            return
        assert content == rendered_rows()
        store = TokenStore.open(file.parent, "train", uncertainty_bins=2)
        assert [sample.input_ids.tolist() for sample in store] == [[1, 2, 3 + at] for at in range(4)]


# --- metadata of a training's checkpoints -------------------------------------------------------------------------------


@cache
def metadata() -> bytes:
    """Write a checkpoint of a small model; return what torch pickled beside it."""
    model = torch.nn.Linear(2, 3)
    state = {"model": model.state_dict(), "optimizer": torch.optim.AdamW(model.parameters()).state_dict()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        dcp.save(state, checkpoint_id=folder, no_dist=True)
        return (Path(folder) / ".metadata").read_bytes()


def check_metadata(content: bytes) -> None:
    """Metadata that were changed are read, or named in an error; nothing but parts of them is made."""
    with scratch(".metadata", content) as file, suppress(UserError):
        assert isinstance(Reader(str(file.parent)).read_metadata(), dcp.Metadata)


# --- files of users --------------------------------------------------------------------------------------------------

YAML = (
    *("verbalized_error: ", "p_true: ", "comparison: ", "version: ", "yes_option: ", "instruction: ", "response: ", "- ", "\n"),
    *("  ", "{instruction}", "{response}", "{lowest}", "{highest}", "{options}", "{conversation}", "{first}", "{second}", "{"),
    *("}", "{{", "}}", "{0}", "{instruction.__class__}", "{response!r}", "{lowest:>9}", "{lowest:{highest}}", "{first[0]}"),
    *(
        "'",
        '"',
        ": ",
        "|\n  ",
        "7",
        "2026-99-99",
        "!!timestamp x",
        "!!bool maybe",
        "!!int x",
        "0b_",
        "&a ",
        "*a",
        "<<: ",
        "[" * 600,
    ),
    *("[", "]", ",", "? ", "# ", "null", "reference: ", "verbalized_diversity: ", "reference", "%", "\t", "!!binary x", "1:99"),
    *ODD,
)
PAIR = [Message(role="user", content="{q}"), Message(role="assistant", content="{a} }")]


def check_prompts(text: str) -> None:
    """Prompts of a user ask for what is needed, or are refused as a user's mistake."""
    with scratch("mine.yaml", text.encode(errors="surrogatepass")) as file:
        with suppress(UserError):
            prompts = load_prompts.__wrapped__(str(file))
            assert "{a} }" in str(prompts.rating("verbalized_error", PAIR, "0", "9")) and prompts.hash
            assert "{q}" in str(prompts.verdict(PAIR, yes_first=True))
        with suppress(UserError):
            load_prompts.__wrapped__(None, str(file)).rating("verbalized_error", PAIR, "0", "9")
        with suppress(UserError):
            assert "{q}" in str(load_judge_prompts.__wrapped__(str(file)).compare(PAIR[:1], "a", "b"))


USER_FILES: Mapping[str, tuple[Any, Callable[[Path], Any]]] = {
    "dataset_dict.json": ({"splits": ["train"]}, lambda folder: find_files(DataConfig(path=str(folder)))),
    "state.json": (
        {"_data_files": [{"filename": "a.arrow"}], "_split": None},
        lambda folder: find_files(DataConfig(path=str(folder))),
    ),
    "adapter_config.json": ({"r": 8, "rank_pattern": {}, "bias": "none"}, lambda folder: adapter_rank(str(folder))),
    "config.json": (
        {"num_attention_heads": 9, "text_config": {"num_attention_heads": 3}},
        lambda folder: check_parallel(str(folder), EngineConfig(), "model"),
    ),
    "outputs.json": ([{"instruction": "q", "output": "a", "dataset": "d"}], lambda folder: outputs_in(folder)),
}


def outputs_in(folder: Path) -> Any:
    return pa.Table.from_pylist(read_model_outputs(folder / "outputs.json"))


def user_file_of(data: bytes) -> Any:
    source = Source(data)
    name = source.pick(tuple(USER_FILES))
    content, _ = USER_FILES[name]
    keys = ("splits", "_data_files", "filename", "_split", "r", "rank_pattern", "bias", "num_attention_heads", "text_config")
    keys += ("instruction", "output", "dataset", "generator", "train")
    if source.number(3):
        content = {**content, source.pick(keys): source.value(keys, 3)} if isinstance(content, dict) else source.value(keys, 3)
    return name, source.damaged(json.dumps(content).encode()) if not source.number(3) else json.dumps(content).encode()


def check_user_file(given: tuple[str, bytes]) -> None:
    """A file of a model or a data set is read, or refused as a user's mistake."""
    name, content = given
    with scratch(name, content) as file, suppress(UserError):
        USER_FILES[name][1](file.parent)


# --- chat templates --------------------------------------------------------------------------------------------------

TEMPLATE = (
    *("{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role }}", "{% if add_generation_prompt %}"),
    *("{% endif %}", "{% generation %}", "{% endgeneration %}", "{{ bos_token }}", "{{ eos_token }}", "<|im_start|>", "\n"),
    *("{{ m['content'] | trim }}", "{% if m.role == 'assistant' %}", "{% else %}", "{{ 1/0 }}", "{{ messages[5] }}", " "),
    *(
        "{{ raise_exception('no') }}",
        "{% set x = messages[0] %}",
        "{{ x.y.z }}",
        "{{ tools | tojson }}",
        "{{",
        "}}",
        "{%",
        "%}",
    ),
    *("{{ m.content[9] }}", "{{ m.content.split('</think>')[1] }}", "{{ m.reasoning_content }}", "{{ range(10) | list }}"),
    *("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ strftime_now('%Y') }}", "{{ m | items }}", "{{ [] | first }}"),
    *(
        "{{ '%d' % 'a' }}",
        "{{ m.content | int }}",
        "{{ 1 // 0 }}",
        "{% include 'x' %}",
        "{{ ''.__class__ }}",
        "{{ 10 ** 400 * 1.0 }}",
    ),
    *("{{ messages | sum }}", "{{ messages | sort }}", "{{ '{0.a}'.format(1) }}", "{% set ns = namespace(x=1) %}{{ ns.x }}"),
    *(
        "{{ 'x' | indent(m) }}",
        "{{ messages | batch(0) | list }}",
        "{{ {} [ [] ] }}",
        "{{ range(99999999) }}",
        "user",
        "(" * 300,
    ),
    *("{% for a in [1] %}" * 25, "{% endfor %}" * 25, "{{ m.tool_calls[0].function.name }}", "<think>", "</think>", *ODD[:6]),
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHATS = (
    [Message(role="user", content="Why?"), Message(role="assistant", content="So.")],
    [Message(role="system", content="Be brief."), *PAIR, *PAIR],
    [PAIR[0], Message(role="assistant", content="<think>hm</think>So.")],
    [PAIR[0], with_extra(Message(role="assistant", content="So."), reasoning_content="hm")],
    [with_extra(PAIR[0], tools=TOOLS), with_extra(Message(role="assistant", content=""), tool_calls=[CALL])],
)


@cache
def tokenizer() -> Any:
    """Make a tokenizer with a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", name_or_path="tiny")


def template_of(data: bytes) -> Any:
    source = Source(data)
    chat = source.pick(CHATS)
    usual = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    return (usual if not source.number(3) else "") + "".join([TEMPLATE[byte % len(TEMPLATE)] for byte in source.rest()]), chat


def check_template(given: tuple[str, list[Message]]) -> None:
    """A chat template gives tokens whose labels are theirs, or a reason."""
    template, chat = given
    made = tokenizer()
    made.chat_template = template
    try:
        renderer = ChatRenderer(made)
        found: list[Rendered] = renderer.sequences(chat)
        renderer.prompt_ids(chat[:1])
    except ValueError as error:
        assert str(error)
        return
    for one in found:
        assert len(one.labels) == len(one.input_ids)
        assert all(label in (-100, token) for label, token in zip(one.labels, one.input_ids, strict=True))


TARGETS: dict[str, Target] = {
    "state": of_bytes(state_of, check_state),
    "pointer": of_bytes(pointer_of, check_pointer, size=8),
    "tokens": of_bytes(lambda data: Source(data).damaged(rendered_rows()), check_tokens, size=20),
    "checkpoint": of_bytes(lambda data: Source(data).damaged(metadata()), check_metadata, size=20),
    "prompts": of_bytes(lambda data: "".join([YAML[byte % len(YAML)] for byte in data]), check_prompts, size=30),
    "user file": of_bytes(user_file_of, check_user_file),
    "template": of_bytes(template_of, check_template, size=20),
}
