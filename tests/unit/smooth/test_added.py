"""Maps and weights of other packages: what they give is used as it is, or refused; with other code alphas are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from added import add

from ual_ray.config import ArmConfig, SmoothConfig
from ual_ray.config.keys import affecting
from ual_ray.config.registry import BASE_MAPS, LOSSES, MAPS, WEIGHTS, Registry
from ual_ray.config.smooth import CONTROLS
from ual_ray.errors import UserError
from ual_ray.smooth.maps import Rows, assign_alpha
from ual_ray.smooth.weights import assign_weights

U = np.array([0.1, 0.3, 0.5, 0.7])
BODIES = {
    "rows.uncertainty[:-1] * 0.2": "float64 of shape \\[3\\]",
    "rows.uncertainty[:, None] * 0.2": "float64 of shape \\[4, 1\\]",
    "0.1": "float: an array of float64 of shape \\[\\]",
    "None": "NoneType: an array of object",
    "['0.1'] * 4": "list: an array of <U3",
    "[True] * 4": "list: an array of bool",
    "[[0.1], [0.1, 0.2], [], []]": "list: .*inhomogeneous",
    "rows.uncertainty * float('nan')": "nan for the uncertainty 0.1; 4 of 4 rows",
    "np.where(rows.uncertainty > 0.6, np.nan, 0.1)": "nan for the uncertainty 0.7; 1 of 4 rows",
    "rows.uncertainty - 0.4": "-0.3 for the uncertainty 0.1; 2 of 4 rows",
    "rows.uncertainty / 0": "inf for the uncertainty 0.1; 4 of 4 rows",
    "unknown": "NameError: name 'unknown' is not defined \\(line 4 of .*added_by_others.py\\)",
}
ALPHAS_ALONE = {"rows.uncertainty + 0.5": "1 for the uncertainty 0.5; 2 of 4 rows"}


def code(body: str) -> str:
    return f"import numpy as np\n\ndef mine(rows, spec):\n    return {body}\n"


def spec(**values: Any) -> ArmConfig:
    """An arm with names that were added after the configuration's names were made."""
    return ArmConfig().model_copy(update=values)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with np.errstate(divide="ignore"):
        yield


@pytest.mark.parametrize(("body", "got"), [*BODIES.items(), *ALPHAS_ALONE.items()])
def test_a_map_gives_each_row_an_alpha_or_is_refused(
    body: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (MAPS, BASE_MAPS):
        add(monkeypatch, tmp_path, registry, code(body), mine="mine")
    for arm in (spec(map="mine"), *(spec(map=control, base="mine") for control in CONTROLS)):
        with pytest.raises(UserError, match=f"the map 'mine' .*\n  got: .*{got}") as error:
            assign_alpha(U, arm)
        assert "correct added_by_others:mine" in str(error.value)


@pytest.mark.parametrize(("body", "got"), BODIES.items())
def test_a_weight_is_given_to_each_row_or_refused(body: str, got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, tmp_path, WEIGHTS, code(body), mine="mine")
    with pytest.raises(UserError, match=f"the weight 'mine' .*\n  got: .*{got}"):
        assign_weights(Rows.of(U), spec(weight="mine"))


@pytest.mark.parametrize("body", ["rows.uncertainty * 0.2", "(rows.uncertainty * 0.2).tolist()"])
def test_what_a_map_gives_is_used(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, tmp_path, MAPS, code(body), mine="mine")
    np.testing.assert_array_equal(assign_alpha(U, spec(map="mine")), U * 0.2)


def test_weights_above_one_are_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, tmp_path, WEIGHTS, code("[0, 1, 1, 8]"), mine="mine")
    np.testing.assert_allclose(assign_weights(Rows.of(U), spec(weight="mine")), [0, 0.3, 0.3, 2.4])


@pytest.mark.parametrize(("registry", "key"), [(MAPS, "map"), (BASE_MAPS, "base"), (WEIGHTS, "weight")])
def test_other_code_makes_other_alphas(registry: Registry, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {key: "mine"}
    before = affecting(spec(), "alphas")
    file = add(monkeypatch, tmp_path, registry, code("0.1"), mine="mine")
    keys = [affecting(spec(**values), "alphas")]
    assert keys[0] == before | values | {"added": {f"{registry.kind} mine": registry.version("mine")}}
    file.write_text(code("0.2"), encoding="utf-8")
    keys.append(affecting(spec(**values), "alphas"))
    assert keys[0]["added"] != keys[1]["added"]
    file.write_text(code("0.1"), encoding="utf-8")
    assert affecting(spec(**values), "alphas") == keys[0]


def test_a_loss_makes_other_weights_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ual_ray.config import TrainConfig

    add(monkeypatch, tmp_path, LOSSES, "def mine(nll, probabilities, strength=1.0): return nll", mine="mine")
    key = affecting(TrainConfig().model_copy(update={"loss": "mine"}), "weights")
    assert key["added"] == {"loss mine": LOSSES.version("mine")} and "added" not in affecting(TrainConfig(), "weights")


def test_keys_of_this_package_stay() -> None:
    assert "added" not in affecting(SmoothConfig(), "alphas")
