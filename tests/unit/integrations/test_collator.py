"""Every token keeps its row's alpha through padding on either side, flattening and packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from ual_ray.errors import UserError
from ual_ray.integrations import SmoothedCollator

ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "alpha": 0.25},
    {"input_ids": [8, 9], "labels": [-100, 9], "alpha": 0.5},
]


def padding(chat_tokenizer: Any, side: str) -> SmoothedCollator:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    return SmoothedCollator(DataCollatorForSeq2Seq(tokenizer))


def test_padding_on_the_right(chat_tokenizer: Any) -> None:
    batch = padding(chat_tokenizer, "right")(ROWS)
    assert batch["alpha"].tolist() == [[0.25, 0.25, 0.25], [0.5, 0.5, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert torch.equal(batch["labels"], batch["targets"])


def test_padding_on_the_left(chat_tokenizer: Any) -> None:
    batch = padding(chat_tokenizer, "left")(ROWS)
    assert batch["alpha"].tolist() == [[0.25, 0.25, 0.25], [0, 0.5, 0.5]]
    whole = [row | {"labels": row["input_ids"]} for row in ROWS]
    # Padding predicts no first token.
    assert padding(chat_tokenizer, "left")(whole)["labels"].tolist() == [[-100, 6, 7], [-100, -100, 9]]


def test_flattening_ends_each_row_where_the_next_begins() -> None:
    batch = SmoothedCollator(DataCollatorWithFlattening())(ROWS)
    assert batch["alpha"].tolist() == [[0.25, 0.25, 0.25, 0.5, 0.5]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]


def test_flattened_rows_have_positions_where_the_collator_gives_lengths_alone() -> None:
    batch = SmoothedCollator(DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True))(ROWS)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]


@pytest.mark.slow
def test_a_pack_has_an_alpha_per_token() -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    pack = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2], "alpha": [0.25] * 3 + [0.5] * 2}
    short = {"input_ids": [4, 3], "labels": [4, 3], "seq_lengths": [2], "alpha": [0.125] * 2}
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=4)
    batch = SmoothedCollator(collator)([pack, short])
    assert batch["alpha"].tolist() == [[0.25, 0.25, 0.25, 0.5, 0.5, 0.125, 0.125, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, 3, -100]]


def test_weights_go_with_their_rows(chat_tokenizer: Any) -> None:
    rows = [row | {"loss_weight": weight} for row, weight in zip(ROWS, (2.0, 0.5), strict=True)]
    assert padding(chat_tokenizer, "right")(rows)["loss_weight"].tolist() == [[2, 2, 2], [0.5, 0.5, 0]]
    with pytest.raises(UserError, match="no weight, and others have one"):
        padding(chat_tokenizer, "right")([rows[0], ROWS[1]])
    with pytest.raises(UserError, match="no weight, and others have one"):
        padding(chat_tokenizer, "right")([ROWS[0], rows[1]])


def test_a_row_without_alpha_is_a_user_error(chat_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="remove_unused_columns=False"):
        padding(chat_tokenizer, "right")([{"input_ids": [1], "labels": [1]}])
    with pytest.raises(UserError, match="a row has no smoothing value"):
        padding(chat_tokenizer, "right")([ROWS[0] | {"alpha": [0.1, None, None]}])


def test_an_alpha_of_another_length_is_refused(chat_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="alpha has 3 values for a row of 2 tokens"):
        padding(chat_tokenizer, "right")([{"input_ids": [1, 2], "labels": [1, 2], "alpha": [0.1, 0.1, 0.1]}])


def test_a_collator_that_cuts_rows_is_refused() -> None:
    def cut(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.tensor([row[name][:2] for row in rows]) for name in ("input_ids", "labels")}

    with pytest.raises(ValueError, match="cannot be told apart"):
        SmoothedCollator(cut)(ROWS)
