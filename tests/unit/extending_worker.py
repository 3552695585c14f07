"""Run by test_extending.py in a copy of the package that has the additions of docs/extending.md: uses each addition."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet
import pytest

from ual_ray.benchmarks import make_benchmarks
from ual_ray.config import Config, EngineConfig
from ual_ray.config.load import load
from ual_ray.data.peek import peek
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import Choice, ChoiceResult, Completion, CompletionResult, Failure, Request, Result
from ual_ray.evaluate.answering import AnswerRows
from ual_ray.evaluate.questions import write_questions
from ual_ray.smooth import assign_alpha
from ual_ray.smooth.maps import Rows
from ual_ray.smooth.weights import assign_weights

PAIR = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
ROW = {"id": "0123456789abcdef", "messages": PAIR}


def an_estimator(config: Config) -> None:
    """Score a row with the fake engine, whose choices have probabilities that sum to 1."""
    engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "m"))
    (scored,) = ScoreRows(config.elicit)([ROW], engine)
    (result,) = engine.run([Choice((*asked(), ("user", "Is this correct? Reply Yes or No.")), ("Yes", "No"))])
    assert isinstance(result, ChoiceResult)
    assert scored["uncertainty_doubt"] == scored["raw_doubt"] == pytest.approx(math.exp(result.log_probabilities[1]))
    (failed,) = ScoreRows(config.elicit)([ROW], Scripted())
    assert (failed["uncertainty_doubt"], failed["status"]) == (None, "quarantined")


def a_map(config: Config) -> None:
    """Map uncertainties, and start a control from the map."""
    spec = config.arms["ual"].model_dump()
    assert assign_alpha([0, 0.5, 1], spec) == pytest.approx([0, 0.1, 0.4])
    assert assign_alpha([0, 0.5, 1], spec | {"map": "inverted", "base": "squared"}) == pytest.approx([0.4, 0.1, 0])


def a_weight(config: Config) -> None:
    """Weigh two rows: 0.25 and 0.75 by their mean."""
    rows = Rows.of(np.array([0.25, 0.75]))
    assert assign_weights(rows, config.arms["ual"]) == pytest.approx([0.5, 1.5])


def a_loss(config: Config) -> None:
    """Weigh a token of probability 0.5, with the default strength and with another."""
    # Imported here, as it takes long and the other additions do without.
    import torch

    from ual_ray.train.token_losses import token_loss

    nll, probabilities = torch.tensor([math.log(2)]), torch.tensor([[0.5, 0.5]])
    for strength, expected in ((config.train.loss_strength, 0.25), (1.0, 0.5)):
        weigh = token_loss(config.train.loss, strength)
        assert weigh is not None and weigh(nll, probabilities).tolist() == pytest.approx([expected])


def a_format(config: Config) -> None:
    """Read a file whose format is detected, and again with the format given."""
    rows = [{"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada"}, {"instruction": "Why?", "response": ""}]
    with TemporaryDirectory() as folder:
        file = lines(Path(folder) / "rows.jsonl", rows)
        for name in ("auto", config.data.format):
            seen = peek(config.data.model_copy(update={"path": str(file), "format": name}))
            assert seen.format_name == "dolly"
            (_, good), (_, bad) = seen.records
            assert good == [{"role": "user", "content": "Ada wrote it.\n\nWho?"}, {"role": "assistant", "content": "Ada"}]
            assert str(bad) == "no response: response is empty"


def a_benchmark(config: Config) -> None:
    """Read questions from a file, and score a right, a wrong and no answer."""
    rows = [{"passage": "Snow is white.", "question": "is snow white", "answer": truth} for truth in (True, False, None)]
    with TemporaryDirectory() as folder:
        file = lines(Path(folder) / "boolq.jsonl", rows)
        configs = {"boolq": config.evaluate.benchmarks["boolq"].model_copy(update={"path": str(file)})}
        counts = write_questions(configs, None, Path(folder))
        questions = pyarrow.parquet.read_table(Path(folder) / "questions.parquet").to_pylist()
    assert counts["boolq"]["questions"] == len(questions) == 2
    answered = AnswerRows(make_benchmarks(configs), "m", "", "")(questions, Scripted("Yes, it is."))
    assert [(row["answer"], dict(row["scores"])) for row in answered] == [("yes", {"accuracy": 1.0}), ("no", {"accuracy": 0.0})]
    assert answered[0]["messages"][0]["content"].startswith("Snow is white.\n\nis snow white?")


def an_engine(config: Config) -> None:
    """Build the configured engine, and score a row with it."""
    engine = make_engine(EngineSpec(config.engine, "m"))
    choice, other = engine.run([Choice(asked(), ("A", "B", "C", "D")), Completion(asked(), 5)])
    assert isinstance(choice, ChoiceResult) and choice.log_probabilities == pytest.approx([math.log(0.25)] * 4)
    assert isinstance(other, Failure)
    assert ScoreRows(config.elicit)([ROW], engine)[0]["uncertainty_p_true"] == pytest.approx(0.5)


def asked() -> tuple[tuple[str, str], ...]:
    """The pair as an engine gets it."""
    return tuple((message["role"], message["content"]) for message in PAIR)


class Scripted:
    """Completes every prompt with one text, or fails."""

    template_hash = "scripted"

    def __init__(self, text: str | None = None) -> None:
        """Take the text; None = fail."""
        self._text = text

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer."""
        return [Failure("engine: gone") if self._text is None else CompletionResult((self._text,), 1, 1) for _ in requests]


def lines(path: Path, rows: list[dict]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fault(name: str, overrides: list[str]) -> str | None:
    """Use an addition; return the traceback of what goes wrong."""
    try:
        globals()[name](load(None, overrides))
    except Exception:
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    print(json.dumps({name: fault(name, overrides) for name, overrides in json.loads(sys.argv[1]).items()}))
