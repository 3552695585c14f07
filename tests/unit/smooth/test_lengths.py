"""Arms are matched by tokens of the model that is trained: characters per token differ between prose and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import ArmConfig
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer
from ual_ray.smooth.stage import response_tokens, smooth

SCHEMA = col.scored_schema(["nll"])
PROSE = "Sunlight is a mix of colours, and blue light is scattered most. "


def chat(*replies: str, **marks: Any) -> Messages:
    turns = [({"role": "user", "content": "Why?"}, {"role": "assistant", "content": reply, **marks}) for reply in replies]
    return [message for pair in turns for message in pair]  # type: ignore[misc]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Callable[[str], Any]) -> str:
    """Save a tokenizer that knows the words of the prose, and numbers by their digits alone."""
    folder = tmp_path_factory.mktemp("model")
    chat_tokenizer("chatml").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").touch()
    return str(folder)


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write scored rows, two to a file."""
    (folder / "scored").mkdir()
    for at in range(0, len(rows), 2):
        table = pa.Table.from_pylist(rows[at : at + 2], schema=SCHEMA)
        pyarrow.parquet.write_table(table, folder / "scored" / f"{at}.parquet")
    return folder / "scored"


def test_tokens_are_those_that_training_counts(tmp_path: Path, model: str, chat_tokenizer: Callable[[str], Any]) -> None:
    chats: Mapping[str, Messages] = {
        "prose": chat(PROSE.strip()),
        "numbers": chat("17 + 25 = 42, and 42 * 3 = 126"),
        "turns": chat("Blue.", "Green is a colour too."),
        "cjk": chat("天空是蓝色的"),
    }
    rows = [{"id": name, "split": "train", "messages": messages} for name, messages in chats.items()]
    rows += [{"id": "held out", "split": "test", "messages": chats["prose"]}, {"id": "none", "split": "train"}]
    table = response_tokens(write(tmp_path, rows), "digest", model)
    counted = dict(zip(table["id"].to_pylist(), table["tokens"].to_pylist(), strict=True))
    assert set(counted) == set(chats)
    renderer = ChatRenderer(chat_tokenizer("chatml"))
    for name, messages in chats.items():
        labels = [label for rendered in renderer.sequences(messages) for label in rendered.labels]
        assert counted[name] == sum(label != IGNORE_INDEX for label in labels), name


@pytest.mark.parametrize("name", ["constant", "shuffled", "inverted", "shuffled_within", "per_source_constant"])
@pytest.mark.slow
def test_controls_smooth_as_much_per_token_as_their_base(name: str, tmp_path: Path, model: str) -> None:
    """Prose is the more uncertain source: matched by characters, the controls would smooth more than the map."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        prose = number % 2
        text = PROSE * int(rng.integers(1, 4)) if prose else " ".join(map(str, rng.integers(0, 1000, 20)))
        uncertainty = float(np.clip(rng.normal(0.6 if prose else 0.3, 0.1), 0, 1))
        rows.append(
            {"id": f"{number:03}", "split": "train", "source": "prose" if prose else "numbers", "messages": chat(text)}
            | {"uncertainty": uncertainty, "response_length": len(text)}
        )
    scored = write(tmp_path, rows)
    tokens = response_tokens(scored, "digest", model)
    arms = {"base": ArmConfig(map="mean_matched"), name: ArmConfig.model_validate({"map": name, "base": "mean_matched"})}
    found = {arm: smooth(scored, spec, 0, tmp_path / arm, tokens=tokens) for arm, spec in arms.items()}
    assert found[name]["length"] == "token of response"
    assert found[name]["mean_by_length"] == pytest.approx(found["base"]["mean_by_length"], rel=1e-6)
    by_character = {arm: smooth(scored, spec, 0, tmp_path / f"{arm} c", texts=False) for arm, spec in arms.items()}
    assert {one["length"] for one in by_character.values()} == {"character of response"}
