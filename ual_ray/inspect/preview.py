"""`ual preview`: show the elicitor's prompts and the tokens that training uses, before anything runs.

Only tokenizers are loaded: no weights, no Ray, no vLLM.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.redact import redact_uri
from ual_ray.data.canonical import usable_rows
from ual_ray.data.formats import BadRow
from ual_ray.data.peek import DataPeek, peek
from ual_ray.engines.requests import Choice, Likelihood, Request, messages_of, turns_of
from ual_ray.engines.spellings import ChoiceTree, make_tree
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.models.chat import IGNORE_INDEX, LARGER_TOKENIZER, NO_END, RESIZE, ChatRenderer, Rendered, without_embedding
from ual_ray.models.resolve import resolve_model, stop_tokens, vocabulary_size
from ual_ray.models.truncate import MOST_CUTS, cut, shorten, trained_tokens

# The distinct requests about a conversation, with the estimators that share each.
RequestsOf = Callable[[col.Messages], Mapping[Request, Sequence[str]]]

# Styles, and the marks around counted tokens on terminals without colours.
COUNTED, REST, WARNING, HEAD, NOTE = "bold green", "dim", "bold red", "bold", "cyan"
OPEN, CLOSE = "«", "»"
BAD_ROWS_SHOWN = 3
# So many rows are rendered to count those that a chat template drops.
MOST_RENDERED = 200
LONGEST_BAD_ROW = 200
MOST_CHOICES_LISTED = 12
INVISIBLE = {" ": "·", "\n": "↵\n", "\t": "→"}
# Control characters, except line breaks and tabs, and marks that turn the direction of the text around them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Piece:
    """A span of rendered text; `counted`: its tokens are scored or trained on."""

    text: str
    counted: bool


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its renderer: text to tokens and back. entries: of the model's vocabulary, None where not known."""

    tokenizer: Any
    renderer: ChatRenderer
    entries: int | None = None

    def outside(self, sequences: Sequence[Rendered]) -> str | None:
        """Name a token that the model has no embedding for; None where all have one."""
        return None if self.entries is None else without_embedding(sequences, self.entries)

    def pieces(self, tokens: Rendered) -> list[Piece]:
        """Decode tokens into spans of counted and other tokens.

        Concatenated, the spans are the text of the tokens: each is what decoding up to its end adds to decoding up to its
        start, so that a tokenizer that treats the first token of a text differently does so only once.
        """
        pieces, done, end = [], "", 0
        for counted, run in groupby(label != IGNORE_INDEX for label in tokens.labels):
            end += len(list(run))
            text = self.decode(tokens.input_ids[:end])
            pieces.append(Piece(text[len(done) :], counted))
            done = text
        return pieces

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def load_chat(model: str, key: str, trust_remote_code: bool) -> Chat:
    """Load the tokenizer of a model, or of a folder with nothing else. Raises UserError, which names the key."""
    from transformers import AutoTokenizer

    folder = Path(model).expanduser()
    try:
        name = str(folder) if (folder / "tokenizer_config.json").is_file() else resolve_model(model)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of {key} cannot be loaded",
            got=f"{model}: {str(error).splitlines()[0]}",
            expected="a reachable hub name, a model directory, or 'demo'",
        ) from error
    entries = None
    with suppress(OSError, ValueError, AttributeError):  # a tokenizer without a model, or of one that is not known
        entries = vocabulary_size(name, trust_remote_code)
    return Chat(tokenizer, ChatRenderer(tokenizer, stops=stop_tokens(name)), entries)


def preview(config: Config, rows: int, console: Console, requests_of: RequestsOf) -> None:
    """Print the first `rows` usable rows as elicitation and training will see them, then the invalid ones.

    `requests_of` lists the requests about a conversation. Raises UserError for unusable data, templates or tokenizers.
    """
    seen = peek(config.data)
    model = load_chat(config.model, "model", config.trust_remote_code)
    elicitor = _load_elicitor(config, model)
    printer = Printer(console, config, requests_of, elicitor, model)
    printer.introduce(seen)
    for number, row in enumerate(islice(usable_rows(config.data, seen.pieces, seen.format_name), rows), start=1):
        printer.row(number, row)
    printer.bad_rows(seen)
    printer.untrained_rows(seen)


def _scored(chat: Chat, request: Likelihood) -> list[Rendered]:
    conversation = messages_of(request.conversation)
    return chat.renderer.sequences(conversation, last_reply_only=request.last_reply_only, content_only=request.content_only)


def tokens_of(request: Request, chat: Chat) -> int:
    """Count the tokens that the engine compares with its limit: the prompt and the maximum length of the answer.

    Raises ValueError when the chat template rejects the conversation, or when two choices have the same tokens.
    """
    if isinstance(request, Likelihood):
        return max(len(sequence.input_ids) for sequence in _scored(chat, request)) + 1
    prompt = len(chat.renderer.prompt_ids(messages_of(request.prompt)))
    if isinstance(request, Choice):
        return prompt + max(map(len, _tree(request, chat).questions)) + 1
    return prompt + request.max_tokens


def as_sent(messages: col.Messages, requests_of: RequestsOf, chat: Chat, limit: int) -> tuple[col.Messages, int]:
    """Truncate the conversation as scoring does under engine.overlong=truncate; return it and the number of cuts.

    Raises ValueError as `tokens_of` does.
    """
    for cuts in range(MOST_CUTS):
        longest = max(tokens_of(request, chat) for request in requests_of(messages))
        if longest <= limit:
            return messages, cuts
        messages = shorten(messages, longest, limit)
    return messages, MOST_CUTS


@dataclass(frozen=True)
class Printer:
    """Prints rows; `elicitor` is None if only a server has the elicitor's chat template."""

    console: Console
    config: Config
    requests_of: RequestsOf
    elicitor: Chat | None
    model: Chat

    def introduce(self, seen: DataPeek) -> None:
        """Print the data, the models, and a legend of the marks."""
        config = self.config
        self._say(seen.describe(redact_uri(config.data.path)), HEAD)
        for remark in seen.remarks:
            self._say(remark, WARNING)
        adapter = f" with the adapter {config.elicit.adapter}" if config.elicit.adapter else ""
        self._say(f"elicitor: {config.elicit.model}{adapter} ({config.engine.kind}); model to train: {config.model}")
        if self.elicitor is None:
            self._say(
                "the server renders the messages with the elicitor's chat template, which is unknown here: "
                "they are shown as they are sent, and their tokens are not counted",
                NOTE,
            )
        marks = f"between {OPEN} and {CLOSE}" if self._plain else "green"
        self._say(f"tokens that are scored or trained on are {marks}; at their ends · is a blank and ↵ a line break", NOTE)

    def row(self, number: int, row: dict[str, Any]) -> None:
        """Print the prompts and the training tokens of one row."""
        given = "" if row[col.GIVEN_ID] is None else f", called {row[col.GIVEN_ID]}"
        about = f"row {number}: {col.ID} {row[col.ID]}{given}, {col.SPLIT} {row[col.SPLIT]}, {col.SOURCE} {row[col.SOURCE]}"
        self.console.print()
        self.console.rule(_shown(f"{about}, {plural(len(row[col.MESSAGES]), 'turn')}"), align="left", style=HEAD)
        if row[col.SPLIT] not in self.config.elicit.splits:
            self._say(f"not scored: elicit.splits is {', '.join(self.config.elicit.splits)}", NOTE)
        self._requests(row[col.MESSAGES])
        self._training(row)

    def bad_rows(self, seen: DataPeek) -> None:
        """Print the number of invalid rows, and the first of them."""
        bad = [(record, str(messages)) for record, messages in seen.records if isinstance(messages, BadRow)]
        self.console.print()
        among = f"{'all' if seen.complete else 'the first'} {plural(len(seen.records), 'row')}"
        self._say(f"{len(bad)} of {among} cannot be used", WARNING if bad else HEAD)
        for record, reason in bad[:BAD_ROWS_SHOWN]:
            shown = json.dumps(dict(record), ensure_ascii=False, default=str)
            rest = "..." if len(shown) > LONGEST_BAD_ROW else ""
            self._say(f"- {reason}\n  {shown[:LONGEST_BAD_ROW]}{rest}")

    def untrained_rows(self, seen: DataPeek) -> None:
        """Print how many of the first valid rows the chat template leaves out of training or the model refuses, and why."""
        good = [messages for _, messages in seen.records if not isinstance(messages, BadRow)][:MOST_RENDERED]
        left_out, refused = Counter[str](), Counter[str]()
        for messages in good:
            try:
                refused.update(filter(None, [self.model.outside(self.model.renderer.sequences(messages))]))
            except ValueError as error:
                left_out[str(error)] += 1
        for reasons, what in ((left_out, "are left out of training"), (refused, f"end training: {LARGER_TOKENIZER}; {RESIZE}")):
            if reasons:
                self._say(f"{reasons.total()} of the first {len(good):,} valid rows {what}", WARNING)
            for reason, count in reasons.most_common(BAD_ROWS_SHOWN):
                self._say(f"- {reason} ({count:,})")

    def _requests(self, messages: col.Messages) -> None:
        engine, cuts = self.config.engine, 0
        if self.elicitor is not None and engine.overlong == "truncate":
            with suppress(ValueError):  # reported below, for the request that caused it
                messages, cuts = as_sent(messages, self.requests_of, self.elicitor, engine.max_model_len)
        if cuts:
            self._say(
                f"overlong: its longest turns are cut to fit into engine.max_model_len = {engine.max_model_len}; "
                "shown is what is sent",
                WARNING,
            )
        for request, names in self.requests_of(messages).items():
            self.console.print()
            self._say(", ".join(names), HEAD, end=": ")
            if self.elicitor is None:
                self._say(_asked(request))
                self._messages(request)
                continue
            try:
                self._request(request, self.elicitor)
            except ValueError as error:
                self._say(f"\nquarantined: template: {error}", WARNING)
                self._messages(request)

    def _request(self, request: Request, chat: Chat) -> None:
        limit, tokens = self.config.engine.max_model_len, tokens_of(request, chat)
        asked = _asked(request)
        if isinstance(request, Choice):
            questions = len(_tree(request, chat).questions)
            asked += f", in {plural(questions, 'question')} of one token"
        self._say(f"{asked}; {tokens:,} of {limit:,} tokens")
        if tokens > limit:
            dropped = self.config.engine.overlong == "drop"
            self._say(f"overlong: would be {'dropped' if dropped else 'quarantined, cut as it is'}", WARNING)
        if isinstance(request, Likelihood):
            for rendered in _scored(chat, request):
                self._tokens(chat, rendered, "scored")
        else:
            self._show([Piece(chat.renderer.text(messages_of(request.prompt), generation_prompt=True), counted=False)], "")

    def _messages(self, request: Request) -> None:
        for message in messages_of(turns_of(request)):
            self._say(f"[{message['role']}]", NOTE)
            self._say(col.spoken(message))

    def _training(self, row: dict[str, Any]) -> None:
        self.console.print()
        self._say(
            "training" if row[col.SPLIT] == col.TRAIN else f"training (not of this row: it is for {row[col.SPLIT]})",
            HEAD,
            end=": ",
        )
        try:
            sequences = self.model.renderer.sequences(row[col.MESSAGES])
        except ValueError as error:
            self._say(f"\ndropped: {error}", WARNING)
            return
        if len(sequences) > 1:
            self._say(f"{len(sequences)} sequences, as the chat template writes earlier turns differently from the last one")
        for rendered in sequences:
            self._sequence(rendered)

    def _sequence(self, rendered: Rendered) -> None:
        limit = self.config.train.max_length
        kept = cut(rendered, self.config.train)
        if kept is None:
            self._say(f"\ndropped: {len(rendered.input_ids):,} tokens, train.max_length is {limit}", WARNING)
            return
        trained = trained_tokens(kept)
        self._say(f"{len(kept.input_ids):,} tokens, {trained:,} of them trained on")
        if lost := len(rendered.input_ids) - len(kept.input_ids):
            untrained = trained_tokens(rendered) - trained
            self._say(f"{lost:,} tokens are cut off behind train.max_length = {limit}, {untrained:,} of them trained", WARNING)
        elif not self.model.renderer.ends_turn(kept):
            self._say(NO_END, WARNING)
        if not trained:
            self._say("no token is left to train on: the row would be dropped", WARNING)
        self._tokens(self.model, kept, "trained")

    def _tokens(self, chat: Chat, tokens: Rendered, how: str) -> None:
        """Print tokens as text, and the last counted token."""
        if outside := chat.outside([tokens]):
            self._say(f"{LARGER_TOKENIZER}: {outside}", WARNING)
        self._show(chat.pieces(tokens), COUNTED)
        last = next((label for label in reversed(tokens.labels) if label != IGNORE_INDEX), None)
        if last is not None:
            self._say(f"the last token {how}: {chat.decode([last])!r}", NOTE)

    def _show(self, pieces: Sequence[Piece], style: str) -> None:
        text = Text()
        for piece in pieces:
            if piece.counted:
                shown = _ends_marked(piece.text)
                text.append(_shown(f"{OPEN}{shown}{CLOSE}" if self._plain else shown).plain, style)
            else:
                text.append(_shown(piece.text).plain, REST if style else "")
        self.console.print(text, highlight=False, soft_wrap=True)

    def _say(self, text: str, style: str = "", end: str = "\n") -> None:
        self.console.print(_shown(text), style=style or None, end=end, highlight=False, soft_wrap=True)

    @property
    def _plain(self) -> bool:
        return self.console.no_color or self.console.color_system is None


def _load_elicitor(config: Config, model: Chat) -> Chat | None:
    """Load the elicitor's tokenizer; the fake engine uses that of the model to train."""
    if config.engine.remote:
        return None
    if config.engine.kind == "fake" or config.elicit.model == config.model:
        return model
    return load_chat(config.elicit.model, "elicit.model", config.trust_remote_code)


def _tree(request: Choice, chat: Chat) -> ChoiceTree:
    return make_tree([tuple(chat.renderer.encode(choice)) for choice in request.choices])


def _asked(request: Request) -> str:
    """Describe a request to the engine in words."""
    if isinstance(request, Choice):
        choices = request.choices
        listed = choices if len(choices) <= MOST_CHOICES_LISTED else (*choices[:3], "...", choices[-1])
        return f"probabilities of {len(choices)} choices ({' '.join(listed)})"
    if isinstance(request, Likelihood):
        return "likelihood of the last reply" if request.last_reply_only else "likelihood of all replies"
    replies = "reply" if request.n == 1 else "replies"
    return f"{request.n} {replies} of at most {request.max_tokens} tokens at temperature {request.temperature}"


def _ends_marked(text: str) -> str:
    """Make whitespace at both ends visible."""
    inner = text.strip(" \n\t")
    start = text[: len(text) - len(text.lstrip(" \n\t"))] if inner else text
    end = text[len(start) + len(inner) :]
    return "".join(INVISIBLE[mark] for mark in start) + inner + "".join(INVISIBLE[mark] for mark in end)


def _shown(text: str) -> Text:
    """Escape text for the console: no markup, and no control characters."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\r\n", "␍\n")
    return Text(CONTROL.sub(lambda found: _picture(ord(found[0])), text))


def _picture(code: int) -> str:
    if code < 0x20 or code == 0x7F:
        return "␡" if code == 0x7F else chr(0x2400 + code)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
