"""Entailment: both directions, behind the question, by the label that is named so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ual_ray.elicit import grouping as module
from ual_ray.elicit.grouping import LONGEST_PAIR, NliGrouping, check_nli_model, entailment_label, group
from ual_ray.errors import UserError

# A text entails those whose words it has.
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}


class Pairs:
    """A tokenizer and a classifier that knows which words a text has."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.options: dict[str, Any] = {}

    def __call__(self, premises: list[str], hypotheses: list[str], **options: Any) -> dict[str, Any]:
        self.options = options
        self.asked += zip(premises, hypotheses, strict=True)
        entailed = [
            set(hypothesis.split()) <= set(premise.split()) for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
        return {"entailed": torch.tensor(entailed)}

    def classify(self, entailed: torch.Tensor) -> Any:
        return SimpleNamespace(
            logits=torch.stack([torch.zeros(len(entailed)), entailed * 2.0 - 1, torch.zeros(len(entailed))], 1)
        )


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    known = Pairs()
    monkeypatch.setattr(module, "_classifier", lambda name: (known, known.classify, 1))
    return known


def test_each_has_to_entail_the_other(pairs: Pairs) -> None:
    grouping = NliGrouping("n")
    long, short, turned = grouping.keys(["it is Paris", "Paris", "Paris it is"])
    assert grouping.same(long, turned) and not grouping.same(long, short) and not grouping.same(short, long)
    assert pairs.asked[-2:] == [("Paris", "it is Paris"), ("it is Paris", "Paris")]
    assert pairs.options["truncation"] is True and pairs.options["max_length"] == LONGEST_PAIR


def test_equal_texts_need_no_model(pairs: Pairs) -> None:
    grouping = NliGrouping("n")
    assert grouping.same(*grouping.keys(["Rome", " Rome"])) and pairs.asked == []


def test_texts_are_compared_behind_what_they_answer(pairs: Pairs) -> None:
    grouping = NliGrouping("n", context="Where is it?")
    assert grouping.keys(["Paris", ""]) == ["Where is it? Paris", "Where is it?"]
    assert grouping.same(*grouping.keys(["is it Paris", "Paris Where is it?"])) is False  # "it" is not "it?"
    assert grouping.same(*grouping.keys(["Paris Where", "Paris is"]))


def test_texts_fall_into_groups(pairs: Pairs) -> None:
    grouping = NliGrouping("n")
    assert group(grouping.keys(["a b", "b a", "a", "c", "b a a"]), grouping.same) == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS, 1),
        ({0: "ENTAILMENT", 1: "NEUTRAL", 2: "CONTRADICTION"}, 0),
        ({0: "not_entailment", 1: "entailment"}, 1),
        ({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, None),
        ({0: "entailment"}, None),
        ({0: "entailment", 1: "entailment"}, None),
        ({0: "negative", 1: "positive"}, None),
    ],
)
def test_the_label_is_found_by_its_name(labels: dict[int, str], expected: int | None) -> None:
    if expected is not None:
        assert entailment_label(labels, "m") == expected
        return
    with pytest.raises(UserError, match=r"(?s)no label named entailment.*m: labels \["):
        entailment_label(labels, "m")


# --- a real model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, chat_tokenizer: Callable[[str], Any]) -> Iterator[Path]:
    """A tiny random cross-encoder that calls everything entailment."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = chat_tokenizer("chatml")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), id2label=LABELS, label2id={name: at for at, name in LABELS.items()}, **sizes)
    model = BertForSequenceClassification(config)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 1.0, 0.0])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module._classifier.cache_clear()
    yield tmp_path
    module._classifier.cache_clear()


def test_a_real_model_is_loaded_and_its_label_read(folder: Path) -> None:
    check_nli_model(str(folder))
    grouping = NliGrouping(str(folder))
    assert grouping.same(*grouping.keys(["Blue.", "Why is the sky blue? " * 300]))
    _, classifier, entailment = module._classifier(str(folder))
    classifier.classifier.bias.data = torch.tensor([0.0, 0.0, 1.0])
    assert entailment == 1 and not grouping.same("Blue.", "Red.")


def test_a_model_without_a_classifier_is_refused(folder: Path) -> None:
    """Its head would be random numbers."""
    from transformers import BertConfig, BertModel

    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(UserError, match=r"(?s)lacks weights of a classifier.*classifier\.bias"):
        NliGrouping(str(folder)).same("a", "b")


def test_a_model_of_something_else_is_refused_before_a_run(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("entailment", "spam"))
    with pytest.raises(UserError, match="no label named entailment"):
        check_nli_model(str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="elicit.nli_model cannot be loaded"):
        check_nli_model(str(folder))
