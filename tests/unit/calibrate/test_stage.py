"""The probe on tiny random models, against the full softmax of transformers' own logits, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_jobs import FAMILIES, Families, job_of
from torch.nn.functional import one_hot

from ual_ray import columns as col
from ual_ray.calibrate import probed_model as probe_model
from ual_ray.calibrate.adjustment import FLOOR_SHARE, fit_adjustment
from ual_ray.calibrate.clustering import choose_classes, measures
from ual_ray.calibrate.metrics import fit_temperature
from ual_ray.calibrate.probed_model import LOWEST_LOGIT, ProbedModel, Text, adjustment_of, temperature_of
from ual_ray.calibrate.stage import probe, probe_validation
from ual_ray.config.files import read_json, read_sums
from ual_ray.errors import UserError
from ual_ray.models.chat import IGNORE_INDEX, ChatRenderer
from ual_ray.models.output_head import OutputHead
from ual_ray.parquet import read_table, write_rows
from ual_ray.plots.calibration import read_points


def brute_force(model: Path, rows: Path, split: str, tokenizer: Any) -> dict[str, Any]:
    """Every target token's logits, by id and position, one row at a time, by the model's own forward."""
    from transformers import AutoModelForCausalLM

    causal_lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found: dict[str, Any] = {"id": [], "position": [], "token_id": [], "logits": [], "after": []}
    for row in (row for row in read_table(rows).to_pylist() if row["split"] == split):
        rendered = ChatRenderer(tokenizer).conversation(row["messages"])
        with torch.no_grad():
            output = causal_lm(torch.tensor([rendered.input_ids]), output_hidden_states=True)
        for position, label in enumerate(rendered.labels):
            if position and label != IGNORE_INDEX:
                found["id"].append(row["id"])
                found["position"].append(position)
                found["token_id"].append(label)
                found["logits"].append(output.logits[0, position - 1].double())
                found["after"].append(output.hidden_states[-1][0, position - 1])
    return found


def expected_statistics(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> dict[str, np.ndarray]:
    probabilities = torch.softmax(logits / temperature, dim=1)
    return {
        "nll": torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="none").numpy(),
        "confidence": probabilities.max(dim=1).values.numpy(),
        "correct": (logits.argmax(dim=1) == labels).numpy(),
        "brier": (probabilities - one_hot(labels, logits.shape[1])).square().sum(dim=1).numpy(),
    }


@pytest.mark.parametrize("family", [*FAMILIES])
@pytest.mark.slow
def test_token_rows_are_those_of_the_full_softmax(
    family: str,
    model_of: Families,
    rows: Path,
    tmp_path: Path,
    chat_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Chunks of 7 tokens, batches of a few rows.
    monkeypatch.setattr(probe_model, "CHUNK_BYTES", 4 * 620 * 7)
    monkeypatch.setattr(probe_model, "TOKENS_PER_BATCH", 100)
    figures = probe(job_of(model_of(family), rows, tmp_path))
    found = read_table(tmp_path / col.TOKENS_FILE)
    assert found.schema.equals(col.TOKEN_STATISTICS)
    tokenizer = chat_tokenizer("chatml")
    expected = brute_force(model_of(family), rows, "test", tokenizer)
    for name in ("id", "position", "token_id"):
        assert found[name].to_pylist() == expected[name]
    logits, labels = torch.stack(expected["logits"]), torch.tensor(expected["token_id"])
    temperature = figures["temperature"]
    adjusted = figures["adjustment"]
    p = torch.softmax(logits, dim=1)
    floorless = torch.maximum(p - adjusted["floor"] / logits.shape[1], FLOOR_SHARE * p).log()
    for prefix, scores, scale in (
        *(("", logits, 1.0), ("scaled_", logits, temperature)),
        ("adjusted_", floorless, adjusted["temperature"]),
    ):
        for name, values in expected_statistics(scores, labels, scale).items():
            if (column := f"{prefix}{name}") in found.column_names:
                measured = np.array(found[column].to_pylist(), dtype=float)
                np.testing.assert_allclose(measured, values, rtol=1e-4, atol=1e-5, err_msg=column)
    validation = brute_force(model_of(family), rows, "validation", tokenizer)
    assert temperature == pytest.approx(fit_temperature(torch.stack(validation["logits"]), validation["token_id"]), rel=1e-3)
    assert figures["token"]["raw"]["n"] == figures["token"]["adjusted"]["n"] == len(labels)
    assert figures["token"]["adjusted"]["nll"] == pytest.approx(np.mean(found["adjusted_nll"].to_pylist()))
    assert figures["token"]["adjusted"]["accuracy"] == figures["token"]["raw"]["accuracy"]
    assert figures["token"]["raw"]["nll"] == pytest.approx(np.mean(found["nll"].to_pylist()))
    assert figures == read_json(tmp_path / col.CALIBRATION_FILE)
    # In transformers the last of the hidden states is that after the final norm.
    tokens = choose_classes(labels, 4, 20)
    after = torch.stack(expected["after"]).numpy()[np.concatenate([places for _, places in tokens])]
    classes = np.repeat(np.arange(len(tokens)), [len(places) for _, places in tokens])
    points = read_points(tmp_path / col.CLUSTER_POINTS_FILE)
    assert read_sums(tmp_path).keys() == {col.CLUSTER_POINTS_FILE}
    np.testing.assert_allclose(points["after_norm"], after, rtol=1e-3, atol=1e-4)
    assert points["classes"].tolist() == classes.tolist()
    clusters = read_json(tmp_path / col.CLUSTERS_FILE)
    assert clusters == figures["clusters"]
    assert [token["id"] for token in clusters["tokens"]] == [token for token, _ in tokens]
    assert clusters["after_norm"]["nc1"] == pytest.approx(measures(after, classes)["nc1"], rel=1e-2)
    assert clusters["before_norm"]["n"] == len(classes)
    assert not np.allclose(points["before_norm"], points["after_norm"])


@pytest.mark.slow
def test_the_states_before_the_norm_become_those_after_it(model_of: Families, rows: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    figures = probe(job_of(model_of("llama"), rows, tmp_path))
    points = dict(np.load(tmp_path / col.CLUSTER_POINTS_FILE))
    norm = AutoModelForCausalLM.from_pretrained(model_of("llama")).model.norm
    with torch.no_grad():
        np.testing.assert_allclose(norm(torch.from_numpy(points["before_norm"])), points["after_norm"], rtol=1e-4, atol=1e-5)
    assert figures["clusters"]["final_norm"] == "norm"


@pytest.mark.slow
def test_logits_twice_as_large_have_twice_the_temperature(model_of: Families, rows: Path, tmp_path: Path) -> None:
    once = probe(job_of(model_of("llama_untied", 0.5), rows, tmp_path / "1"))
    twice = probe(job_of(model_of("llama_untied", 1.0), rows, tmp_path / "2"))
    assert twice["temperature"] == pytest.approx(2 * once["temperature"], rel=1e-3)
    for name in ("nll", "ece_width", "brier"):
        assert twice["token"]["scaled"][name] == pytest.approx(once["token"]["scaled"][name], abs=1e-3)
    assert twice["token"]["raw"]["nll"] > once["token"]["raw"]["nll"] + 0.01


def test_logits_of_an_unknown_kind_are_refused(model_of: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OutputHead.__init__

    def forgetful(self: OutputHead, causal_lm: Any) -> None:
        real(self, causal_lm)
        self.softcap = None

    monkeypatch.setattr(OutputHead, "__init__", forgetful)
    with pytest.raises(UserError, match="Gemma2ForCausalLM cannot be measured"):
        ProbedModel(str(model_of("gemma2")), "float32", "cpu")


def test_barred_tokens_do_not_spoil_the_temperature_nor_the_floor(model_of: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    head = OutputHead(AutoModelForCausalLM.from_pretrained(model_of("llama_untied")))
    hidden, labels = torch.randn(50, 32), torch.randint(0, 600, (50,))
    barred = torch.zeros(620)
    barred[610:] = -torch.inf
    monkeypatch.setattr(OutputHead, "bias", barred)
    expected = fit_temperature(head.logits(hidden)[:, :610].numpy(force=True), labels.numpy())
    assert temperature_of(head, hidden, labels) == pytest.approx(expected, rel=1e-3)
    # Logits of a model that smooths by 0.2, given as hidden states; barred ones count as if they were only very unlikely.
    torch.manual_seed(0)
    own = torch.softmax(6 * torch.randn(400, 620), dim=1)
    smoothed, labels = (0.8 * own + 0.2 / 620).log(), own[:, :610].multinomial(1).squeeze(1)
    monkeypatch.setattr(OutputHead, "weight", torch.eye(620))
    wanted = fit_adjustment([(head.logits(smoothed).clamp(min=LOWEST_LOGIT), labels)], expected)
    fitted = adjustment_of(head, smoothed, labels, expected)
    assert (fitted.temperature, fitted.floor) == pytest.approx((wanted.temperature, wanted.floor), rel=1e-3)


def test_a_norm_that_is_not_found_is_said(
    model_of: Families, rows: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(ProbedModel, "_norms", lambda self: {})
    with caplog.at_level("WARNING"):
        figures = probe(job_of(model_of("llama"), rows, tmp_path))
    assert "found no norm in front of the output layer" in caplog.text
    assert figures["clusters"]["final_norm"] is None
    assert figures["clusters"]["before_norm"] is None
    assert figures["clusters"]["after_norm"] is not None


# --- which rows ------------------------------------------------------------------------------------------------------


def test_without_validation_rows_nothing_is_fitted(model_of: Families, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows([row for row in read_table(rows).to_pylist() if row["split"] == "test"], col.ROWS, folder / "a.parquet")
    figures = probe(job_of(model_of("llama"), folder, tmp_path / "out"))
    assert figures["temperature"] is None
    assert "no validation row" in figures["temperature_note"]
    assert figures["token"]["scaled"] is figures["token"]["adjusted"] is figures["adjustment"] is None
    found = read_table(tmp_path / "out" / col.TOKENS_FILE)
    assert found["scaled_nll"].null_count == found["scaled_confidence"].null_count == found["scaled_brier"].null_count
    assert found["scaled_nll"].null_count == found["adjusted_nll"].null_count == len(found) > 0


def test_without_test_rows_the_user_is_told(model_of: Families, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'test'"):
        probe(job_of(model_of("llama"), rows, tmp_path, limit=5))


@pytest.mark.slow
def test_whole_rows_are_taken_by_id_up_to_the_limit(model_of: Families, rows: Path, tmp_path: Path) -> None:
    everything = probe(job_of(model_of("llama"), rows, tmp_path / "all"))["rows"]["test"]
    assert everything["rows"] == 12
    some = probe(job_of(model_of("llama"), rows, tmp_path / "some", calibration={"max_tokens": 60}))
    kept = some["rows"]["test"]
    assert 0 < kept["rows"] < 12
    assert kept["tokens"] <= 60
    ids = sorted(row["id"] for row in read_table(rows).to_pylist() if row["split"] == "test")
    found = read_table(tmp_path / "some" / col.TOKENS_FILE)
    assert sorted(set(found["id"].to_pylist())) == ids[: kept["rows"]]
    one = probe(job_of(model_of("llama"), rows, tmp_path / "one", calibration={"max_tokens": 1}))
    assert one["rows"]["test"]["rows"] == 1


def test_overlong_rows_are_counted(model_of: Families, rows: Path, tmp_path: Path, chat_tokenizer: Any) -> None:
    renderer = ChatRenderer(chat_tokenizer("chatml"))
    lengths = [
        len(renderer.conversation(row["messages"]).input_ids) for row in read_table(rows).to_pylist() if row["split"] == "test"
    ]
    limit = sorted(lengths)[6]
    figures = probe(job_of(model_of("llama"), rows, tmp_path, limit=limit))["rows"]["test"]
    assert figures["dropped"] == {"overlong": sum(length > limit for length in lengths)}
    assert figures["rows"] == sum(length <= limit for length in lengths)


def test_no_clusters_are_made_when_none_are_asked_for(model_of: Families, rows: Path, tmp_path: Path) -> None:
    assert probe(job_of(model_of("llama"), rows, tmp_path, clustering={"tokens": 0}))["clusters"] is None
    assert not (tmp_path / col.CLUSTERS_FILE).exists()
    two = probe(job_of(model_of("llama"), rows, tmp_path, clustering={"tokens": 2}))["clusters"]
    assert two["mueller"] is None
    assert two["after_norm"]["classes"] == 2


def test_progress_counts_every_token(model_of: Families, rows: Path, tmp_path: Path, chat_tokenizer: Any) -> None:
    seen: list[int] = []
    probe(job_of(model_of("llama"), rows, tmp_path), seen.append)
    renderer = ChatRenderer(chat_tokenizer("chatml"))
    wanted = [row for row in read_table(rows).to_pylist() if row["split"] != "train"]
    assert sum(seen) == sum(len(renderer.conversation(row["messages"]).input_ids) for row in wanted)


# --- parts of the model ---------------------------------------------------------------------------------------------


def test_batches_hold_every_text_once() -> None:
    lengths = [3, 50, 7, 7, 4096, 9000, 1]
    batches = list(probe_model._batches(lengths))
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= probe_model.TOKENS_PER_BATCH


def test_states_do_not_depend_on_their_neighbours(model_of: Families) -> None:
    model = ProbedModel(str(model_of("llama")), "float32", "cpu")
    random = np.random.default_rng(0)
    texts = [Text(random.integers(4, 600, n), np.arange(2, n)) for n in (5, 30, 12, 30)]
    together = np.empty((sum(len(text.positions) for text in texts), 32))
    for states in model.states(texts, lambda tokens: None):
        together[states.places] = states.after.numpy()
        np.testing.assert_array_equal(states.labels.numpy(), np.concatenate([text.labels for text in texts])[states.places])
    alone = [next(iter(model.states([text], lambda tokens: None))).after.numpy() for text in texts]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-5)


def test_norms_on_other_gpus_are_not_compared(model_of: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm whose output is elsewhere, as with several GPUs; here it is on the device without data."""
    norms = ProbedModel._norms

    class Elsewhere(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.to("meta")

    elsewhere = Elsewhere()

    def with_one_elsewhere(model: ProbedModel) -> Any:
        found = norms(model)
        found["norm"].register_forward_pre_hook(lambda module, inputs: (elsewhere(*inputs), None)[1])
        return {"elsewhere": elsewhere, **found}

    monkeypatch.setattr(ProbedModel, "_norms", with_one_elsewhere)
    assert ProbedModel(str(model_of("llama")), "float32", "cpu").norm == "norm"


@pytest.mark.slow
def test_the_scaled_nll_of_validation_rows_is_the_lowest_of_any_temperature(
    model_of: Families, rows: Path, tmp_path: Path
) -> None:
    job = job_of(model_of("llama_untied", 3.0), rows, tmp_path)
    found = probe_validation(job)
    fitted = probe(job)
    assert found["temperature"] == pytest.approx(fitted["temperature"])
    assert found["tokens"] == fitted["rows"]["validation"]["tokens"]
    other = probe_validation(job_of(model_of("llama_untied", 1.0), rows, tmp_path))
    assert found["scaled_nll"] == pytest.approx(other["scaled_nll"], rel=1e-4), "the scale of the logits is taken out"
    assert found["temperature"] == pytest.approx(3 * other["temperature"], rel=1e-2)


def test_without_a_validation_row_there_is_nothing_to_choose_by(model_of: Families, rows: Path, tmp_path: Path) -> None:
    test_rows = [row for row in read_table(rows, None).to_pylist() if row[col.SPLIT] == col.TEST]
    (tmp_path / "rows").mkdir()
    write_rows(test_rows, read_table(rows, None).schema, tmp_path / "rows" / "rows.parquet")
    with pytest.raises(UserError, match="no row of the split 'validation'"):
        probe_validation(job_of(model_of("llama"), tmp_path / "rows", tmp_path))
