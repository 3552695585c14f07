"""Token weights of each loss: hand-computed values, gradients, and lookup by name and strength."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from added import add

from ual_ray import preflight
from ual_ray.config.load import load
from ual_ray.config.registry import LOSSES
from ual_ray.errors import UserError
from ual_ray.train.token_losses import token_loss

# The label has the probability 0.5, 0.25, 0.05.
PROBABILITIES = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.05, 0.9, 0.05]], dtype=torch.float64)
NLL = -PROBABILITIES[:, 0].log()


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("dft", None, [0.5, 0.25, 0.05]),
        ("dft", 2.0, [0.25, 0.0625, 0.0025]),
        ("prior_leaning", None, [0.5**0.5, 0.5, 0.05**0.5]),
        ("profit", None, [1, 1, 0]),
        ("profit", 0.3, [1, 0, 0]),
    ],
)
def test_weights_by_hand(name: str, strength: float | None, expected: list[float]) -> None:
    weigh = token_loss(name, strength)
    assert weigh is not None
    assert weigh(NLL, PROBABILITIES).tolist() == pytest.approx(expected)


def test_eaft_follows_the_entropy_among_the_most_likely_tokens() -> None:
    weigh = token_loss("eaft", None)
    assert weigh is not None
    entropies = [math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))]
    assert weigh(NLL, PROBABILITIES).tolist() == pytest.approx([entropy / math.log(20) for entropy in entropies])
    uniform = torch.full((1, 40), 1 / 40, dtype=torch.float64)
    # Twenty of forty hold half of the mass: among themselves they are as uncertain as can be.
    assert weigh(torch.zeros(1), uniform).tolist() == pytest.approx([1.0])
    logits = 3 * torch.randn(30, 64, dtype=torch.float64)
    top = torch.distributions.Categorical(logits=logits.topk(20).values).entropy()
    torch.testing.assert_close(weigh(torch.zeros(30), logits.softmax(1)), top / math.log(20))


def test_plain_cross_entropy_costs_no_pass() -> None:
    assert token_loss("sft", None) is None
    assert LOSSES["sft"](NLL, PROBABILITIES).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", LOSSES)
def test_weights_are_shares(name: str) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(50, 30, dtype=torch.float64)
    weights = LOSSES[name](-logits.log_softmax(1)[:, 3], logits.softmax(1))
    assert weights.shape == (50,)
    assert ((weights >= 0) & (weights <= 1)).all()


def test_the_prior_leaning_weight_is_the_gradient_of_its_loss() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    probability = logits.softmax(1)[:, 2]
    (expected,) = torch.autograd.grad(((1 - probability**0.5) / 0.5).sum(), logits)
    weigh = token_loss("prior_leaning", 0.5)
    assert weigh is not None
    nll = -logits.log_softmax(1)[:, 2]
    (actual,) = torch.autograd.grad((weigh(nll.detach(), logits.detach().softmax(1)) * nll).sum(), logits)
    torch.testing.assert_close(actual, expected)


# --- of other packages ------------------------------------------------------------------------------------------------

GIVEN = {
    "nll * float('nan')": "got: weights [nan, nan, nan, nan, nan] of tokens with NLL",
    "-nll": "got: weights [-7.5",
    "0.5": "got: float 0.5",
    "None": "got: NoneType None",
    "nll[:, None]": "got: a tensor of shape [5, 1], torch.float32",
    "nll[:1]": "got: a tensor of shape [1], torch.float32",
    "nll > 1": "got: a tensor of shape [5], torch.bool",
    "nll.mul_(2)": "it changed the NLL or the probabilities",
    "probabilities.mul_(2)[:, 0]": "it changed the NLL or the probabilities",
    "unknown": "got: NameError: name 'unknown' is not defined (line 2 of",
}


@pytest.mark.parametrize(("body", "got"), GIVEN.items())
def test_a_loss_of_another_package_is_tried_before_a_run(
    body: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, tmp_path, LOSSES, f"def mine(nll, probabilities, strength=2.0):\n    return {body}\n", mine="mine")
    config = load(None)
    train, arm = config.train.model_copy(update={"loss": "mine"}), config.arms["ual"].model_copy(update={"loss": "mine"})
    monkeypatch.setattr(type(arm), "training", lambda self, given: train if self.loss else given)
    arms = config.model_copy(update={"arms": {"a": arm}})
    for check in (partial(preflight.check_train, train), partial(preflight.check_arms, arms)):
        with pytest.raises(UserError, match="the loss 'mine'") as error:
            check()
        assert got in str(error.value) and "correct added_by_others:mine" in str(error.value)


def test_the_shape_of_its_weights_is_checked_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def mine(nll, probabilities, strength=2.0):\n    return nll**strength if len(nll) > 2 else nll.sum()\n"
    add(monkeypatch, tmp_path, LOSSES, code, mine="mine")
    preflight.check_train(load(None).train.model_copy(update={"loss": "mine"}))
    weigh = token_loss("mine", 3.0)
    assert weigh is not None and torch.equal(weigh(NLL, PROBABILITIES), NLL**3)
    with pytest.raises(UserError, match=r"got: a tensor of shape \[\]"):
        weigh(NLL[:2], PROBABILITIES[:2])
