"""Arms are matched by tokens of the model that is trained: characters per token differ between prose and numbers."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from rich.console import Console

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import ArmConfig
from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer, load_renderer
from ual_ray.run.step import Place, Session
from ual_ray.smooth.stage import rendered_tokens, smooth
from ual_ray.smooth.step import smooth_step
from ual_ray.train.batches import StepPlan
from ual_ray.train.mixture import Mixture
from ual_ray.train.token_store import TokenStore
from ual_ray.train.tokenize import Render

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


def test_a_model_that_the_hub_does_not_give_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*names: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    rows = [{"id": "a", "split": "train", "messages": chat("Blue.")}]
    with pytest.raises(UserError, match="(?s)model: the hub gives no such model.*nobody/nothing: no network"):
        rendered_tokens(write(tmp_path, rows), load(None, ["model=nobody/nothing"]))


def test_tokens_are_those_that_training_counts(tmp_path: Path, model: str, chat_tokenizer: Callable[[str], Any]) -> None:
    chats: Mapping[str, Messages] = {
        "prose": chat(PROSE.strip()),
        "numbers": chat("17 + 25 = 42, and 42 * 3 = 126"),
        "turns": chat("Blue.", "Green is a colour too."),
        "refused": [{"role": "assistant", "content": "Blue."}, {"role": "nobody", "content": ""}],
        "cjk": chat("天空是蓝色的"),
    }
    rows = [{"id": name, "split": "train", "messages": messages} for name, messages in chats.items()]
    rows += [{"id": "held out", "split": "test", "messages": chats["prose"]}, {"id": "none", "split": "train"}]
    table = rendered_tokens(write(tmp_path, rows), load(None, [f"model={model}"]))
    counted = {row[col.ID]: row[col.TARGET_TOKENS] for row in table.to_pylist()}
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
    tokens = rendered_tokens(scored, load(None, [f"model={model}"]))
    arms = {"base": ArmConfig(map="mean_matched"), name: ArmConfig.model_validate({"map": name, "base": "mean_matched"})}
    found = {arm: smooth(scored, spec, 0, tmp_path / arm, tokens=tokens) for arm, spec in arms.items()}
    assert found[name]["length"] == "trained token"
    assert found[name]["mean_by_length"] == pytest.approx(found["base"]["mean_by_length"], rel=1e-6)
    by_character = {arm: smooth(scored, spec, 0, tmp_path / f"{arm} c", texts=False) for arm, spec in arms.items()}
    assert {one["length"] for one in by_character.values()} == {"character of response"}


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.slow
def test_controls_match_what_is_trained_of_rows_that_are_cut_or_dropped(
    tmp_path: Path, model: str, overlong: str, shared: bool
) -> None:
    """Long rows are the more uncertain ones: matched over whole responses, a control of rows cut to a part smooths less."""
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        messages = chat(PROSE * int(rng.integers(1, 3) * (1 + 6 * (number % 2))))
        rows.append({"id": f"{number:03}", "split": "train", "source": "prose", "messages": messages, "response_length": 9})
        rows[-1]["uncertainty"] = 0.3 + 0.4 * (number % 2) + 0.1 * rng.random()
    scored = write(tmp_path, rows)
    config = load(None, [f"model={model}", "train.max_length=60", f"train.overlong={overlong}"])
    session = Session(config, Console(file=io.StringIO()), None)
    tokens = None
    if shared:
        tokens = tmp_path / "tokens"
        tokens.mkdir()
        kept = pyarrow.dataset.dataset(scored, format="parquet").to_table(columns=[col.ID, col.SPLIT, col.MESSAGES])
        Render(model, config.train, False, tokens)(kept)
    found = {
        name: smoothed(session, {"map": name}, scored, tmp_path, tokens) for name in ("mean_matched", "inverted", "constant")
    }
    trained, renderer = dict[str, int](), load_renderer(model, False)
    for row in rows:
        (rendered,) = renderer.sequences(row["messages"])
        if len(rendered.input_ids) <= 60 or overlong == "truncate":
            trained[row["id"]] = sum(label != IGNORE_INDEX for label in rendered.labels[1:60])
    weights = np.array([*trained.values()], dtype=np.float64)
    assert len(weights) > 20 and weights.max() < 60
    means = {name: np.average([own[row] for row in trained], weights=weights) for name, own in found.items()}
    assert means == pytest.approx(dict.fromkeys(means, 0.1), rel=1e-6)


def smoothed(session: Session, arm: dict[str, Any], scored: Path, root: Path, tokens: Path | None = None) -> dict[str, float]:
    """Smooth rows as an arm of a run does; return the alphas by id."""
    spec = ArmConfig.model_validate(arm)
    done = smooth_step(session, "arm", spec, scored, Place(root / "smooth"), tokens)
    return {row["id"]: row["alpha"] for row in pyarrow.parquet.read_table(done.folder / col.SMOOTHED_FILE).to_pylist()}


@pytest.mark.parametrize("arm", [{}, {"weight": "filter", "filter_share": 0.4}, {"missing": "exclude"}])
@pytest.mark.slow
def test_controls_match_what_a_mixture_draws(tmp_path: Path, model: str, arm: dict[str, Any]) -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        source = "prose" if number % 4 == 0 else "numbers"
        text = PROSE if source == "prose" else " ".join(map(str, rng.integers(0, 1000, 3)))
        uncertainty = None if number % 10 == 9 else (0.4 if source == "prose" else 0.1) + 0.6 * rng.random()
        rows.append(
            {"id": f"{number:03}", "split": "train", "source": source, "messages": chat(text), "uncertainty": uncertainty}
        )
    scored, mixture = write(tmp_path, rows), {"prose": 3.0, "numbers": 1.0}
    config = load(None, [f"model={model}", "train.mixture={prose: 3, numbers: 1}"])
    session = Session(config, Console(file=io.StringIO()), None)
    counted = {row[col.ID]: row[col.TARGET_TOKENS] for row in rendered_tokens(scored, config).to_pylist()}
    means = {}
    for name in ("mean_matched", "inverted", "constant"):
        found = smoothed(session, {"map": name} | arm, scored, tmp_path)
        table = pyarrow.parquet.read_table(next((tmp_path / "smooth").glob("*/smoothed.parquet"))).to_pylist()
        kept = [row for row in rows if row["id"] in found]
        epochs = Mixture(mixture, pa.array([row["source"] for row in kept]), 0)
        drawn = np.bincount(np.concatenate([epochs.epoch(number) for number in range(99)]), minlength=len(kept))
        own = {row["id"]: row.get(col.LOSS_WEIGHT) or 1.0 for row in table}
        mass = [own[row["id"]] * counted[row["id"]] * times for row, times in zip(kept, drawn, strict=True)]
        means[name] = np.average([found[row["id"]] for row in kept], weights=mass)
        shutil.rmtree(tmp_path / "smooth")
    assert means == pytest.approx(dict.fromkeys(means, 0.1), rel=0.03), "but for rounding of an epoch's shares"


# Earlier replies are not where a reply is generated, so that each is a sequence of its own.
LAST_REPLY_APART = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' now' if loop.last and m.role == 'assistant' }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant now\n{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_mixture_draws_sequences_of_which_a_row_may_have_several(tmp_path: Path, model: str, shared: bool) -> None:
    """Rows of three replies are three sequences here: their source gives as many samples, from three times as many."""
    rng, rows, tokens = np.random.default_rng(0), [], tmp_path / "tokens"
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(LAST_REPLY_APART)
    for number in range(40):
        turns = 3 if number % 2 else 1
        rows.append({"id": f"{number:03}", "split": "train", "source": f"of {turns}", "messages": chat(*["Blue."] * turns)})
        rows[-1]["uncertainty"] = (0.4 if turns == 3 else 0.1) + 0.5 * rng.random()
    scored = write(tmp_path, rows)
    config = load(None, [f"model={tmp_path / 'model'}", "train.mixture={of 3: 1, of 1: 1}"])
    tokens.mkdir()
    kept = pyarrow.dataset.dataset(scored, format="parquet").to_table(columns=[col.ID, col.SPLIT, col.MESSAGES])
    Render(config.model, config.train, False, tokens)(kept)
    session = Session(config, Console(file=io.StringIO()), None)
    for name in ("mean_matched", "inverted", "constant"):
        spec = ArmConfig.model_validate({"map": name})
        done = smooth_step(session, name, spec, scored, Place(tmp_path / name), tokens if shared else None)
        store = TokenStore.open(tokens, col.TRAIN, 0, done.folder / col.SMOOTHED_FILE, sources=scored)
        assert len(store) == 80
        draws = StepPlan(store.lengths, store.target_tokens, config.train, 0, 1, store.sources).draws
        assert store.mean_alpha(draws) == pytest.approx(0.1, rel=1e-6), name


@pytest.mark.slow
def test_what_is_trained_of_rows_is_in_the_key(tmp_path: Path, model: str) -> None:
    rows = [
        {"id": f"{n}", "split": "train", "source": "a", "messages": chat(PROSE * n), "uncertainty": n / 9} for n in range(1, 9)
    ]
    scored, folders = write(tmp_path, rows), set()
    for overrides in ([], ["train.max_length=40"], ["train.max_length=40", "train.overlong=drop"], ["train.mixture={a: 1}"]):
        session = Session(load(None, [f"model={model}", *overrides]), Console(file=io.StringIO()), None)
        folders.add(smooth_step(session, "arm", ArmConfig(), scored, Place(tmp_path / "smooth")).folder)
    assert len(folders) == 4
