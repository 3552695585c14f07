"""Token statistics of a calibration, summed by question, as the comparisons pair them. Pure."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.stats.metrics import (
    ACCURACY_OF_TOKENS,
    AURC_OF_TOKENS,
    BRIER_OF_TOKENS,
    NLL_ADJUSTED,
    NLL_SCALED,
    Numbers,
    numbers,
)
from ual_ray.stats.selective import aurc_by_question

# The columns of `columns.TOKEN_STATISTICS` that are summed, by the name of their metric.
SUMMED = {
    NLL_ADJUSTED: col.ADJUSTED_NLL,
    NLL_SCALED: col.SCALED_NLL,
    BRIER_OF_TOKENS: col.BRIER,
    ACCURACY_OF_TOKENS: col.CORRECT,
}
# All that is read of them.
READ = (col.ID, *SUMMED.values(), col.CONFIDENCE)


def token_sums(tokens: pa.Table) -> tuple[pa.Array, dict[str, Numbers]]:
    """Sum rows of `columns.TOKEN_STATISTICS` by question: ids, and by metric [questions, 2] of sum and number of tokens.

    A question that lacks a value has NaN; a metric that no question has is left out.
    """
    encoded = tokens[col.ID].combine_chunks().dictionary_encode()
    place = encoded.indices.to_numpy(zero_copy_only=False)
    questions = len(encoded.dictionary)
    count = np.bincount(place, minlength=questions).astype(np.float64)
    found = {}
    for metric, column in SUMMED.items():
        if column in tokens.column_names and pc.any(tokens[column].is_valid()).as_py():
            sums = np.bincount(place, weights=numbers(tokens, column), minlength=questions)
            found[metric] = np.column_stack([sums, np.where(np.isnan(sums), np.nan, count)])
    if {col.CONFIDENCE, col.CORRECT} <= {*tokens.column_names} and tokens.num_rows:
        found |= _selective(tokens, place, questions)
    return encoded.dictionary, found


def _selective(tokens: pa.Table, place: NDArray[np.integer], questions: int) -> dict[str, Numbers]:
    sure, right = numbers(tokens, col.CONFIDENCE), numbers(tokens, col.CORRECT)
    known = np.isfinite(sure) & np.isfinite(right)
    if not known.any():
        return {}
    values = aurc_by_question(sure[known], right[known], place[known], questions)
    values[place[~known]] = np.nan
    return {AURC_OF_TOKENS: values}
