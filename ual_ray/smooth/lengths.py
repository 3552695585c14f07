"""How long the responses are, in the unit that the loss averages over: tokens of the model that is trained."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.columns import spoken, trained_replies
from ual_ray.models.resolve import resolve_model
from ual_ray.parquet import RowFiles

BATCH_ROWS = 1024
TOKENS = "tokens"
COUNTED = pa.schema([(col.ID, pa.string()), (TOKENS, pa.int64())])


@lru_cache(maxsize=1)
def response_tokens(scored: Path, digest: str, model: str, trust_remote_code: bool = False) -> pa.Table:
    """Count the tokens of every training row's trained replies, an end of turn each (COUNTED); arms of one command share it.

    digest: of the scored rows, so that other rows in the same folder are counted again. Rows without messages are left out.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model), trust_remote_code=trust_remote_code)
    files = RowFiles(scored)
    training = pyarrow.dataset.field(col.SPLIT) == col.TRAIN
    counted = []
    for batch in files.to_batches(columns=[col.ID, col.MESSAGES], filter=training, batch_size=BATCH_ROWS):
        rows = [(row[col.ID], row[col.MESSAGES]) for row in batch.to_pylist() if row[col.MESSAGES]]
        replies = [[spoken(messages[at]) for at in trained_replies(messages)] for _, messages in rows]
        texts = [text for row in replies for text in row]
        sizes = iter(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else ())
        tokens = [sum(next(sizes) + 1 for _ in row) for row in replies]
        counted.append(pa.record_batch([[identity for identity, _ in rows], tokens], schema=COUNTED))
    return pa.Table.from_batches(counted, COUNTED)
