"""The self-check: does a score tell a row's own response from that of another row? It needs no labels. Pure.

A few of the user's own rows are scored, a fifth of them with another row's response. Most responses are taken to be good, and
one to another question is wrong, so the AUROC between the two kinds bounds what a score can do: it tells that the elicitor
reads the pair at all. It does not tell that finer errors are found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import AUTO, ElicitConfig
from ual_ray.config.elicit import LEAST_CHECKED
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.stats.score_quality import Quality, against_labels

Row = dict[str, Any]

SWAPPED_SHARE = 0.2
# So many candidates are read for every row that is scored, so that the rows are not all neighbours in the data.
CANDIDATES_PER_ROW = 8


@dataclass(frozen=True)
class SelfCheck:
    """Rows to score, with ids of their own and a split of no data set; `swapped` has the ids of those with a wrong response."""

    rows: list[Row]
    swapped: frozenset[str]

    def result(self, measured: pa.Table, elicit: ElicitConfig) -> dict[str, Any]:
        """Measure how well each estimator tells the swapped rows, and select one; `measured` has ids and uncertainties.

        JSON-serializable. Raises UserError where elicit.uncertainty is auto and no estimator can be selected.
        """
        correct = np.array([float(identity not in self.swapped) for identity in measured[col.ID].to_pylist()])
        found = {name: against_labels(_scores(measured, name), correct) for name in elicit.estimators}
        auto = elicit.uncertainty == AUTO
        selected = best_of(found, elicit.max_quarantine_share) if auto else elicit.uncertainty
        return {
            "rows": len(self.rows),
            "swapped": len(self.swapped),
            "estimators": {name: asdict(quality) for name, quality in found.items()},
            "uncertainty": selected,
            "reason": f"highest AUROC of {plural(len(found), 'estimator')} in the self-check" if auto else "as configured",
        }


def make_self_check(candidates: Sequence[Row], count: int, seed: int) -> SelfCheck:
    """Choose `count` of the candidates, which are canonical rows, by a hash of seed and id, and swap the response of a fifth.

    The other response comes from a row of the same source where there is one; else a score could go by the kind of text.
    Whatever the order of the candidates, the result is the same. Raises UserError for too few rows, or equal responses.
    """
    unique = {row[col.ID]: row | {col.MESSAGES: _by_last_reply(row[col.MESSAGES])} for row in candidates}
    ordered = sorted(unique.values(), key=lambda row: place(row[col.ID], seed))
    chosen = ordered[:count]
    if len(chosen) < LEAST_CHECKED:
        raise UserError(
            "elicit.self_check: too few rows",
            got=len(chosen),
            expected=f"at least {LEAST_CHECKED}",
            fix="set elicit.self_check=0",
        )
    wanted = round(SWAPPED_SHARE * len(chosen))
    rows: list[Row] = []
    swapped: set[str] = set()
    for at, row in enumerate(chosen):
        messages = (
            _with_another_response(row, [*ordered[at + 1 :], *ordered[:at]], set(unique)) if len(swapped) < wanted else None
        )
        identity = col.digest(["self_check", col.content_id(messages or row[col.MESSAGES])])
        if messages is not None:
            swapped.add(identity)
        rows.append(row | {col.ID: identity, col.SPLIT: "self_check", col.MESSAGES: list(messages or row[col.MESSAGES])})
    if not swapped:
        raise UserError(
            "elicit.self_check: all rows have the same response", got=f"{len(chosen)} rows", fix="set elicit.self_check=0"
        )
    return SelfCheck(rows, frozenset(swapped))


def place(identity: str, seed: int) -> str:
    """Return what a row is ordered by when some are chosen."""
    return col.digest(["self_check", seed, identity])


def best_of(qualities: Mapping[str, Quality], max_left_out: float) -> str:
    """Name the estimator of the highest AUROC, of several the first; those without a score on too many rows are passed over.

    Raises UserError when none is left.
    """
    measured = {
        name: found.auroc
        for name, found in qualities.items()
        if found.auroc is not None and found.left_out <= max_left_out * (found.n + found.left_out)
    }
    if not measured:
        rows = {name: f"{found.n} of {found.n + found.left_out}" for name, found in qualities.items()}
        raise UserError(
            "elicit.uncertainty=auto: no estimator has enough scores in the self-check",
            got=f"rows with a score: {rows}",
            fix="see the column 'error' of the rows; name an estimator in elicit.uncertainty to score without it",
        )
    return max(measured, key=lambda name: measured[name])


def _by_last_reply(messages: col.Messages) -> col.Messages:
    """Leave only the last of the replies that are trained to be scored: a mean over all would hide that it was swapped."""
    trained = col.trained_replies(messages)
    return [
        col.with_extra(message, **{col.REPLY_WEIGHT: 0}) if at in trained[:-1] else message
        for at, message in enumerate(messages[: trained[-1] + 1])
    ]


def _with_another_response(row: Row, others: Sequence[Row], known: set[str]) -> col.Messages | None:
    """Return the row's messages with the response of another, of the same source if possible; None if all are equal."""
    before, response = row[col.MESSAGES][:-1], row[col.MESSAGES][-1]
    for other in sorted(others, key=lambda other: other[col.SOURCE] != row[col.SOURCE]):
        found = other[col.MESSAGES][-1]
        messages = [*before, found]
        if found["content"].strip() != response["content"].strip() and col.content_id(messages) not in known:
            return messages
    return None


def _scores(measured: pa.Table, name: str) -> np.ndarray:
    return np.asarray(measured[col.uncertainty_column(name)].to_numpy(zero_copy_only=False), dtype=np.float64)
