"""What one actor does with a block: cut or drop what is too long, count everything, write a file that a retry replaces."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.config import TrainConfig
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer
from ual_ray.parquet import write_table
from ual_ray.train import tokenize as tokens
from ual_ray.train.given_rows import check_own_ids, check_values
from ual_ray.train.token_store import TokenStore

BLOCK = pa.schema(
    [
        *((col.ID, pa.string()), (col.SPLIT, pa.string()), (col.MESSAGES, col.MESSAGES_TYPE)),
        *((col.UNCERTAINTY, pa.float64()), (col.ALPHA, pa.float64())),
    ]
)
FLOAT64 = pa.float64()
MakeActor = Callable[..., tokens.Render]


def messages(reply: str, question: str = "Name a colour.") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def block(*rows: tuple[str, Any], split: str = col.TRAIN, alpha: float | None = 0.1) -> pa.Table:
    made = [{col.ID: name, col.SPLIT: split, col.MESSAGES: said, col.UNCERTAINTY: 0.5, col.ALPHA: alpha} for name, said in rows]
    return pa.Table.from_pylist(made, BLOCK)


@pytest.fixture
def renderer(chat_tokenizer: Callable[[str], Any]) -> ChatRenderer:
    return ChatRenderer(chat_tokenizer("mistral"))


@pytest.fixture
def actor(renderer: ChatRenderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeActor:
    """Make an actor that writes to the test's folder, with a tokenizer in the style of Mistral."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(tokens, "resolve_model", lambda name: name)
    monkeypatch.setattr(tokens, "load_renderer", lambda *_: renderer)
    monkeypatch.setattr(tokens, "vocabulary_size", lambda *_: 620)
    return lambda **settings: tokens.Render("tiny", TrainConfig(**settings), False, tmp_path)


def test_a_long_row_is_cut_at_its_end_and_counted(actor: MakeActor, renderer: ChatRenderer, tmp_path: Path) -> None:
    said = messages("Blue. " * 50)
    (summary,) = actor(max_length=40)(block(("a", said), ("b", messages("Blue.")))).to_pylist()
    assert (summary["train_rows"], summary["truncated_rows"], summary["dropped"]) == (2, 1, [])
    cut, whole = TokenStore.open(tmp_path, col.TRAIN)
    expected = renderer.conversation(said)
    assert cut.input_ids.tolist() == expected.input_ids[:40] and cut.labels.tolist() == expected.labels[:40]
    assert whole.input_ids.tolist() == renderer.conversation(messages("Blue.")).input_ids
    assert summary["train_tokens"] == 40 + len(whole.input_ids)


@pytest.mark.parametrize(
    ("said", "settings", "reason"),
    [
        (messages("Blue. " * 50), {"max_length": 40, "overlong": "drop"}, tokens.OVERLONG),
        (messages("Blue.", "colour " * 50), {"max_length": 40}, tokens.NO_TARGET),
        (messages("Blue.")[:1], {}, tokens.NO_TARGET),
        ([{"role": "system", "content": "Be brief."}, *messages("Blue.")], {}, tokens.NOT_RENDERABLE),
    ],
    ids=["overlong", "labels_cut_off", "no_reply", "refused"],
)
def test_what_cannot_be_trained_on_is_dropped_with_its_reason(
    said: list[dict[str, str]], settings: dict[str, Any], reason: str, actor: MakeActor, tmp_path: Path
) -> None:
    (summary,) = actor(**settings)(block(("a", said))).to_pylist()
    ((dropped),) = summary["dropped"]
    assert (dropped[col.ID], dropped["reason"]) == ("a", reason)
    assert ("rejects the conversation" in dropped["error"]) == (reason == tokens.NOT_RENDERABLE)
    assert summary["train_rows"] == summary["truncated_rows"] == summary["train_tokens"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_token_outside_of_the_embedding_refuses_the_training(
    actor: MakeActor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tokens, "vocabulary_size", lambda *_: 100)
    (summary,) = actor()(block(("a", messages("Blue.")))).to_pylist()
    with pytest.raises(UserError, match="(?s)tokenizer is larger.*1 row: token [0-9]+ is outside.*100 entries"):
        tokens.check_vocabulary(summary["dropped"])


@pytest.mark.parametrize(("template", "endless"), [("{{ m.content }}", 1), ("{{ m.content + eos_token }}", 0)])
def test_rows_without_an_end_of_turn_are_counted(
    template: str, endless: int, actor: MakeActor, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = copy.deepcopy(renderer._tokenizer)
    tokenizer.chat_template = f"{{% for m in messages %}}{template}{{% endfor %}}"
    monkeypatch.setattr(tokens, "load_renderer", lambda *_: ChatRenderer(tokenizer))
    (summary,) = actor()(block(("a", messages("Blue.")))).to_pylist()
    assert (summary["train_rows"], summary["endless_rows"]) == (1, endless)


def test_a_row_of_several_sequences_keeps_its_id_and_alpha(
    actor: MakeActor, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(renderer._tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: <think></think>{% endif %}"
    )
    monkeypatch.setattr(tokens, "load_renderer", lambda *_: ChatRenderer(tokenizer))
    (summary,) = actor()(block(("a", [*messages("Blue."), *messages("Green.")]), ("b", messages("Red.")))).to_pylist()
    found = TokenStore.open(tmp_path, col.TRAIN)
    assert (summary["train_rows"], summary["sequences"]) == (2, 3)
    assert [(sample.id, sample.alpha) for sample in found] == [("a", 0.1), ("a", 0.1), ("b", 0.1)]
    trained = ["".join(tokenizer.decode([t]) for t in sample.labels if t != IGNORE_INDEX) for sample in found]
    assert trained == ["Blue.</s>", "Green.</s>", "Red.</s>"]


def test_a_block_done_again_replaces_its_file(actor: MakeActor, tmp_path: Path) -> None:
    rows = block(("a", messages("Blue.")), ("b", messages("Green.")))
    assert actor()(rows) == actor()(rows)
    assert len(list(tmp_path.iterdir())) == 1
    actor()(block(("c", messages("Blue."))))
    assert list(TokenStore.open(tmp_path, col.TRAIN).ids) == ["a", "b", "c"]


def test_validation_rows_have_no_alpha(actor: MakeActor, tmp_path: Path) -> None:
    (summary,) = actor()(block(("a", messages("Blue.")), split=col.VALIDATION, alpha=None)).to_pylist()
    (sample,) = TokenStore.open(tmp_path, col.VALIDATION)
    assert sample.alpha == 0.0
    assert (summary["validation_rows"], summary["train_rows"], summary["train_tokens"]) == (1, 0, 0)


def test_stored_targets_are_those_that_are_predicted(actor: MakeActor, tmp_path: Path) -> None:
    actor()(block(("a", messages("Blue, and green too."))))
    store = TokenStore.open(tmp_path, col.TRAIN)
    assert store.target_tokens.tolist() == [sum(label != IGNORE_INDEX for label in store[0].labels[1:])]
    assert {col.INPUT_IDS, col.LABELS} <= set(col.TOKENS.names)


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (
            {tokens.NOT_RENDERABLE: 3},
            "correct the rows that the chat template or the tokenizer refuses, or train another model",
        ),
        ({tokens.OVERLONG: 1, tokens.NO_TARGET: 2}, "raise train.max_length"),
        ({tokens.NOT_RENDERABLE: 3, tokens.OVERLONG: 1}, "correct the rows .*; raise train.max_length"),
        ({}, "give rows of the split 'train'"),
    ],
)
def test_what_to_do_about_dropped_rows_is_what_helps(
    reasons: dict[str, int], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that refuses rows was answered with "raise train.max_length"."""
    dropped = [{"id": f"{number}", "reason": reason, "error": ""} for reason, many in reasons.items() for number in range(many)]
    block = {name: 0 for name in tokens.COUNTED} | {"dropped": dropped, tokens.SUMS: {}}
    monkeypatch.setattr(tokens, "_made_from", lambda *_: "these rows")
    for kept, more in ((0, ""), (1, "; or raise train.max_dropped_share")):
        monkeypatch.setattr(tokens, "_summaries", lambda *_, kept=kept: iter([copy.deepcopy(block) | {"train_rows": kept}]))
        if reasons or not kept:
            with pytest.raises(UserError, match=f"fix: {told}{more}"):
                tokens.render_all(load(None, ["train.max_dropped_share=0.1"]), tmp_path, None, tmp_path / f"{kept}")


def numbers(folder: Path, kind: pa.DataType = FLOAT64, **columns: list[Any]) -> Path:
    """Write rows with these alphas or weights: two of training, then one of validation."""
    columns = {col.ALPHA: [0.0, 1.0, None]} | columns
    arrays = {name: pa.array(values, kind) for name, values in columns.items()}
    table = pa.table({col.ID: ["a", "b", "v"], col.SPLIT: [col.TRAIN, col.TRAIN, col.VALIDATION], **arrays})
    write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({col.ALPHA: [0.0, 1.5, None]}, r"alpha cannot be trained with.*\n.*1\.5 in the row b"),
        ({col.ALPHA: [-1e-9, 0.0, None]}, "in the row a, and 0 rows more"),
        ({col.ALPHA: [float("nan"), None, None]}, "nan in the row a, and 1 row more"),
        ({col.ALPHA: [0.5, float("nan"), None]}, "nan in the row b"),
        ({col.LOSS_WEIGHT: [-1.0, 1.0, -1.0]}, "loss_weight cannot be trained with"),
        ({col.LOSS_WEIGHT: [1.0, float("inf"), 1.0]}, "inf in the row b"),
        ({col.LOSS_WEIGHT: [0.0, 0.0, 1.0]}, "loss_weight leaves nothing to train on.*0 in every training row"),
    ],
)
def test_alphas_and_weights_that_the_loss_is_not_defined_for_are_refused_with_their_row(
    columns: dict[str, list[Any]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        check_values(numbers(tmp_path, **columns))


def test_alphas_and_weights_at_their_bounds_are_trained_with(tmp_path: Path) -> None:
    check_values(numbers(tmp_path))
    check_values(numbers(tmp_path, **{col.LOSS_WEIGHT: [0.0, None, None]}))
    check_values(numbers(tmp_path, **{col.LOSS_WEIGHT: [2.0, float("nan"), -1.0]}))
    check_values(numbers(tmp_path, pa.int64(), **{col.ALPHA: [0, 1, None]}))
    with pytest.raises(UserError, match="alpha has no numbers"):
        check_values(numbers(tmp_path, pa.string(), **{col.ALPHA: ["0.1", "0.2", None]}))


@pytest.mark.parametrize("split", [col.TRAIN, col.VALIDATION])
def test_rows_of_a_split_that_is_not_read_are_refused(split: str, tmp_path: Path) -> None:
    table = pa.table({col.ID: ["a", "b", "c", "d"], col.SPLIT: [col.TRAIN, None, "dev", col.TEST]})
    write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="(?s)no stage reads.*got: 1 row of None, 1 row of 'dev'"):
        check_own_ids(tmp_path / "rows.parquet", split)


@pytest.mark.parametrize(("ids", "distinct"), [(["a", None, "c"], 2), (["a", "b", "a"], 2), ([None, None, None], 0)])
def test_rows_without_an_id_of_their_own_are_refused(ids: list[str | None], distinct: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"(?s)id repeats or has no value.*{distinct} different ids in 3 validation rows"):
        check_own_ids(write_ids(tmp_path, ids), col.VALIDATION)


def write_ids(folder: Path, ids: list[str | None]) -> Path:
    write_table(pa.table({col.ID: pa.array(ids, pa.string()), col.SPLIT: [col.VALIDATION] * len(ids)}), folder / "rows.parquet")
    return folder / "rows.parquet"
