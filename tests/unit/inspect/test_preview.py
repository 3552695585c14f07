"""The preview: the tokens it shows are the rendered text, the marks are where the labels are, and data stays data."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ual_ray.columns import Message
from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.elicit.estimators import make_estimators, requests_of
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, Likelihood, LikelihoodResult, Request, Result, overlong
from ual_ray.errors import UserError
from ual_ray.inspect import preview as module
from ual_ray.inspect.preview import Chat, Piece, as_sent, preview, tokens_of
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, Rendered
from ual_ray.models.truncate import MOST_CUTS

TEMPLATES = {"gemma", "rewriting"}
STYLES = ["chatml", "llama3", "mistral", "gemma"]
ALL = "elicit.estimators=[verbalized_error,p_true,nll,nll_sum,self_consistency,semantic_entropy]"
TEXTS = [
    "Blue.",
    "👩‍🚀🏳️‍🌈 日本語 naïve ½ \u202eright-to-left",
    "two\nlines\n\n\tand a tab",
    "[bold]not bold[/bold] <|im_start|> {x} 🙂",
]


def chat_of(tokenizer: Any) -> Chat:
    return Chat(tokenizer, ChatRenderer(tokenizer))


def talk(*texts: str) -> list[Message]:
    return [Message(role="assistant" if at % 2 else "user", content=text) for at, text in enumerate(texts)]


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("style", STYLES)
def test_the_pieces_are_the_rendered_text(chat_tokenizer: Callable[[str], Any], style: str, text: str) -> None:
    chat = chat_of(chat_tokenizer(style))
    messages = talk(text, f"{text} 🙂", "More?", text)
    rendered = chat.renderer.conversation(messages)
    pieces = chat.pieces(rendered)
    assert "".join(piece.text for piece in pieces) == chat.renderer.text(messages, generation_prompt=False)
    assert any(len(chat.tokenizer.encode(mark, add_special_tokens=False)) > 1 for mark in "🙂日"), "characters are split"
    assert "�" not in "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("style", STYLES)
def test_what_counts_is_the_reply_and_its_end(
    chat_tokenizer: Callable[[str], Any], end_of_turn: dict[str, str], style: str
) -> None:
    chat = chat_of(chat_tokenizer(style))
    counted = [
        piece.text for piece in chat.pieces(chat.renderer.conversation(talk("Hi", "Hello 🙂", "So?", "Yes."))) if piece.counted
    ]
    assert [text.strip() for text in counted] == [f"Hello 🙂{end_of_turn[style]}", f"Yes.{end_of_turn[style]}"]
    last = chat.renderer.conversation(talk("Hi", "Hello 🙂", "So?", "Yes."), last_reply_only=True)
    assert [piece.text.strip() for piece in chat.pieces(last) if piece.counted] == [f"Yes.{end_of_turn[style]}"]


def test_no_tokens_are_no_pieces(chat_tokenizer: Callable[[str], Any]) -> None:
    chat = chat_of(chat_tokenizer("chatml"))
    assert chat.pieces(Rendered([], [])) == []
    ids = chat.renderer.encode("Blue.")
    assert chat.pieces(Rendered(ids, ids)) == [Piece("Blue.", True)]
    assert chat.pieces(Rendered(ids, [IGNORE_INDEX] * len(ids))) == [Piece("Blue.", False)]


# --- requests --------------------------------------------------------------------------------------------------------


def test_requests_that_estimators_share_are_shown_once() -> None:
    shared = requests_of(make_estimators(load(None, [ALL]).elicit), talk("Hi", "Hello"))
    assert list(shared.values()) == [
        ["verbalized_error"],
        ["p_true"],
        ["p_true"],
        ["nll", "nll_sum"],
        ["self_consistency", "semantic_entropy"],
    ]


def test_tokens_are_counted_as_the_engine_counts_them(chat_tokenizer: Callable[[str], Any]) -> None:
    chat = chat_of(chat_tokenizer("chatml"))
    prompt = (("user", "Hi"),)
    length = len(chat.renderer.prompt_ids(talk("Hi")))
    assert tokens_of(Completion(prompt, max_tokens=7), chat) == length + 7
    assert tokens_of(Choice(prompt, ("A", "B")), chat) == length + 1
    assert tokens_of(Choice(prompt, ("1", "10", "100")), chat) == length + 3, "100 is asked behind 1 and 0"
    whole = chat.renderer.conversation(talk("Hi", "Hello"))
    assert tokens_of(Likelihood((("user", "Hi"), ("assistant", "Hello"))), chat) == len(whole.input_ids) + 1


def test_what_is_too_long_is_cut_as_scoring_cuts_it(chat_tokenizer: Callable[[str], Any]) -> None:
    chat = chat_of(chat_tokenizer("chatml"))
    elicit = load(None, ["elicit.estimators=[verbalized_error,nll]", "elicit.retest_share=0"]).elicit
    limit = max(tokens_of(request, chat) for request in requests_of(make_estimators(elicit), talk("a", "b"))) * 3
    sent: list[Request] = []

    class Engine:
        template_hash = "hash"

        def run(self, requests: list[Request]) -> list[Result]:
            sent.extend(requests)
            return [self.answer(request) for request in requests]

        def answer(self, request: Request) -> Result:
            if tokens_of(request, chat) > limit:
                return overlong(tokens_of(request, chat), limit)
            return ChoiceResult((-3.0,) * 10, 1) if isinstance(request, Choice) else LikelihoodResult(1.0, 1, 1)

    messages = talk("colour " * 3000, "blue " * 50)
    cut, cuts = as_sent(messages, partial(requests_of, make_estimators(elicit)), chat, limit)
    assert 0 < cuts < MOST_CUTS
    (scored,) = ScoreRows(elicit, "truncate")([{"id": "0" * 16, "messages": messages}], Engine())
    assert scored["truncated"] and scored["status"] == "ok"
    shown = list(requests_of(make_estimators(elicit), cut))
    assert set(shown) <= set(sent) and sent[-1] in shown, "the preview shows what was sent last"


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chat_tokenizer: Callable[[str], Any]) -> Callable[..., str]:
    """Preview rows with the tiny tokenizer; return what is printed."""

    def load_chat(model: str, key: str, trust_remote_code: bool) -> Chat:
        return chat_of(chat_tokenizer(model if model in TEMPLATES else "chatml"))

    monkeypatch.setattr(module, "load_chat", load_chat)

    def run(rows: list[Any], *overrides: str, n: int = 1, colour: bool = False) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config: Config = load(None, [f"data.path={path}", "data.test_share=0", "data.validation_share=0", *overrides])
        file = io.StringIO()
        console = Console(file=file, width=120, force_terminal=colour, color_system="truecolor" if colour else None)
        preview(config, n, console, partial(requests_of, make_estimators(config.elicit, config.seed)))
        return file.getvalue()

    return run


ROW = {"instruction": "Name [red]a colour[/red].", "output": "Blue 🙂", "id": "mine"}


def test_a_row_is_shown_with_all_that_is_asked(show: Callable[..., str]) -> None:
    shown = show([ROW], ALL, "elicit.samples=5", "elicit.max_new_tokens=50")
    assert "called mine, split train, source rows, 2 turns" in shown
    assert "verbalized_error: probabilities of 10 choices (0 1 2 3 4 5 6 7 8 9), in 1 question of one token" in shown
    assert "self_consistency, semantic_entropy: 5 replies of at most 50 tokens at temperature 1.0" in shown
    assert "nll, nll_sum: likelihood of the last reply" in shown
    assert "<|im_start|>user\nName [red]a colour[/red].<|im_end|>\n<|im_start|>assistant\n«Blue 🙂<|im_end|>»\n" in shown
    assert shown.count("«Blue 🙂<|im_end|>»") == 2, "scored, and trained on"
    assert shown.count("Here is an instruction") == 3
    assert "the last token trained: '<|im_end|>'" in shown
    assert "0 of all 1 row cannot be used" in shown


def test_the_scale_to_100_names_its_questions(show: Callable[..., str]) -> None:
    shown = show([ROW], "elicit.scale=0-100")
    assert re.search(r"101 choices \(0 1 2 \.\.\. 100\), in \d+ questions of one token", shown)


def test_colours_take_the_place_of_marks(show: Callable[..., str]) -> None:
    shown = show([ROW], colour=True)
    assert "«" not in shown.split("row 1", 1)[1]
    assert "\x1b[1;32mBlue 🙂<|im_end|>\x1b[0m" in shown


def test_data_is_neither_markup_nor_commands(show: Callable[..., str]) -> None:
    shown = show([{"instruction": "\x1b[31mred \x07 [link=x]\r\nline \x9b\u202e", "output": "[/] fine"}], colour=True)
    assert "␛[31mred ␇ [link=x]␍\nline \\x9b\\u202e" in shown
    assert "[/] fine" in shown


@pytest.mark.parametrize(
    ("text", "shown"), [("\n Hello\n", "↵\n·Hello↵\n"), ("a\n b", "a\n b"), (" \n", "·↵\n"), ("\tx ", "→x·"), ("", "")]
)
def test_trained_whitespace_at_the_ends_is_visible(text: str, shown: str) -> None:
    assert module._ends_marked(text) == shown


def test_what_is_too_long_is_said(show: Callable[..., str]) -> None:
    long = {"instruction": "Why? " * 200, "output": "Blue. " * 200}
    dropped = show([long], "engine.max_model_len=300")
    assert "overlong: would be dropped" in dropped
    cut = show([long], "engine.max_model_len=1000", "engine.overlong=truncate", "elicit.estimators=[verbalized_error]")
    assert "cut to fit into engine.max_model_len = 1000; shown is what is sent" in cut
    assert "overlong: would be" not in cut
    assert cut.split("training")[0].count("Blue.") < 200
    assert cut.split("training")[1].count("Blue.") == 200, "training has its own limit"


def test_what_training_cuts_is_said(show: Callable[..., str]) -> None:
    row = {"instruction": "Why?", "output": "🙂" * 20}
    cut = show([row], "train.max_length=60")
    assert "60 tokens" in cut and re.search(r"\d+ tokens are cut off behind train.max_length = 60, \d+ of them trained", cut)
    assert "no token is left to train on" not in cut
    assert "no token is left to train on: the row would be dropped" in show(
        [row | {"instruction": "Why? " * 9}], "train.max_length=16"
    )


def test_rows_that_are_not_scored_or_trained_on_are_named(show: Callable[..., str]) -> None:
    shown = show([ROW], "data.test_share=0.999")
    assert "not scored: elicit.splits is train" in shown
    assert "training (not of this row: it is for test)" in shown


def test_a_template_that_refuses_the_conversation_is_quoted(show: Callable[..., str]) -> None:
    row = {"instruction": "Hi", "output": "Hello", "system": "Be brief."}
    shown = show([row], "model=gemma", "elicit.model=gemma")
    assert "quarantined: template: the chat template rejects the conversation: System role not supported" in shown
    assert "dropped: the chat template rejects the conversation" in shown
    assert (
        "dropped: the chat template rewrites" in show([{"messages": talk("Hi", "Hello", "So?", "Yes")}], "model=rewriting")
        or "rewriting" not in STYLES
    )


def test_rows_that_a_template_leaves_out_are_counted_beyond_those_shown(show: Callable[..., str]) -> None:
    refused = [{"instruction": f"Hi {number}", "output": "Hello", "system": "Be brief."} for number in range(7)]
    kept = [{"instruction": f"Hi {number}", "output": "Hello"} for number in range(3)]
    shown = show([*kept, *refused], "model=gemma", n=1)
    assert "7 of the first 10 valid rows are left out of training" in shown
    assert re.search(r"- the chat template rejects the conversation: System role not supported \(correct .* \(7\)", shown)
    assert "left out of training" not in show(kept, "model=gemma")


@pytest.mark.parametrize("estimator", ["verbalized_error", "nll"])
def test_tokens_that_the_model_has_no_embedding_for_are_told(
    estimator: str, show: Callable[..., str], monkeypatch: pytest.MonkeyPatch, chat_tokenizer: Callable[[str], Any]
) -> None:
    """Training refuses such rows as a whole: the preview showed them as any other."""
    plain = chat_of(chat_tokenizer("chatml"))
    entries = max(max(row.input_ids) for row in plain.renderer.sequences(talk("Name a colour.", "Blue."))) + 1
    outside = {"instruction": "Name a colour.", "output": "Sunlight is scattered most."}
    assert max(plain.renderer.sequences(talk(*outside.values()))[0].input_ids) >= entries
    own = f"elicit={{estimators: [{estimator}], uncertainty: {estimator}}}"
    told = "the tokenizer is larger than the model's embedding"
    for known, counted in ((entries, True), (10_000, False), (None, False)):
        chat = Chat(plain.tokenizer, plain.renderer, known)
        monkeypatch.setattr(module, "load_chat", lambda *_, chat=chat: chat)
        shown = show([{"instruction": "Name a colour.", "output": "Blue."}, outside], own, n=2)
        assert (f"1 of the first 2 valid rows end training: {told}; use the tokenizer that belongs" in shown) == counted
        assert (
            bool(re.search(rf"- token \d+ is outside of the model's vocabulary of {entries} entries \(1\)", shown)) == counted
        )
        assert shown.split("row 2")[0].count(told) == 0
        rows = shown.split("row 2")[1].count(f"{told}: token")
        assert rows == (0 if not counted else 2 if estimator == "nll" else 1), "scored, and trained on"


def test_the_size_of_the_vocabulary_is_that_of_the_model(tmp_path: Path, chat_tokenizer: Callable[[str], Any]) -> None:
    chat_tokenizer("chatml").save_pretrained(tmp_path)
    assert module.load_chat(str(tmp_path), "model", False).entries is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 77}))
    assert module.load_chat(str(tmp_path), "model", False).entries == 77


def test_a_server_is_sent_messages(show: Callable[..., str]) -> None:
    shown = show([ROW], "engine.kind=openai", "elicit.model=served", "elicit.estimators=[verbalized_error,self_consistency]")
    assert "the server renders the messages" in shown
    assert "self_consistency: 8 replies of at most 256 tokens at temperature 1.0\n[user]\nName [red]a colour[/red].\n" in shown
    assert "«Blue 🙂<|im_end|>»" in shown, "the model to train is here"


def test_bad_rows_are_listed_with_their_reasons(show: Callable[..., str]) -> None:
    bad = [{"instruction": f"[b]{number}[/b]", "output": ""} for number in range(5)]
    shown = show([bad[0], ROW, ROW, *bad[1:], ROW | {"instruction": "Other", "id": "other"}], n=2)
    assert "5 of all 8 rows cannot be used" in shown
    assert "; 1 duplicate among all 8 rows" in shown
    assert shown.count("no response") == 3
    assert '{"instruction": "[b]0[/b]", "output": ""}' in shown
    assert "row 2" in shown and "called other" in shown, "a duplicate is not shown twice"


def test_a_tokenizer_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match="the tokenizer of elicit.model cannot be loaded"):
        module.load_chat(str(tmp_path), "elicit.model", False)


def test_a_folder_with_a_tokenizer_alone_is_enough(tmp_path: Path, chat_tokenizer: Callable[[str], Any]) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    chat = module.load_chat(str(tmp_path), "model", False)
    assert chat.renderer.conversation(talk("Hi", "Ho")) == chat_of(tokenizer).renderer.conversation(talk("Hi", "Ho"))
