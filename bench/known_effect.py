"""Rows of which uncertainty tells the wrong ones: what a verdict over real trainings has to find.

    python bench/known_effect.py FOLDER

It writes rows, a small random model, an elicitor that was trained on right rows, and experiment.yaml into FOLDER. Half of the
training rows, and no other, name the wrong colour, for each name always the same one. No temperature or smoothing floor takes
back what is learnt from them, so an arm that leaves out the rows of which the elicitor is uncertain is better.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ual_ray import columns as col
from ual_ray.config.data import DataConfig
from ual_ray.data.canonical import split_of

NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]
COLOURS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
SHARES = DataConfig(validation_share=0.2, test_share=0.3, group_by="group")
ROWS, WRONG, STEPS = 1200, 0.5, 150
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Every arm trains alike. `uncertain_rows_count` leaves out next to none of the wrong rows: an arm without an effect.
CONFIG = """
model: {folder}/model
data: {{path: {folder}/rows.jsonl, validation_share: 0.2, test_share: 0.3, group_by: group}}
arms:
  sft: {{map: none}}
  certain_rows: {{map: none, weight: filter, filter_share: 0.55}}
  uncertain_rows_count: {{map: none, weight: filter, filter_share: 0.02}}
elicit: {{model: {folder}/elicitor, estimators: [nll], uncertainty: nll}}
engine: {{max_actors: 1, max_model_len: 256}}
train: {{num_workers: 1, epochs: 8, global_batch_size: 16, learning_rate: 0.003, dtype: float32}}
evaluate: {{benchmarks: {{held_out: {{kind: held_out}}}}, clustering: {{tokens: 0}}}}
experiment: {{seeds: [0, 1, 2]}}
output: {folder}/out
"""


def rows() -> list[dict[str, str]]:
    """Make the rows; a group decides a row's split."""
    draw, found = random.Random(0), []
    for number in range(ROWS):
        group, place = f"row-{number}", draw.randrange(len(NAMES))
        training = split_of(col.digest(["group", group]), SHARES) == col.TRAIN
        wrong = training and draw.random() < WRONG
        colour = COLOURS[(place + wrong) % len(COLOURS)]
        question = f"Round {number}. Which colour does {NAMES[place]} like?"
        found.append(
            {"instruction": question, "output": f"{NAMES[place]} likes {colour}.", "group": group, "wrong": str(wrong)}
        )
    return found


def tokenizer_of(found: list[dict[str, str]]) -> Any:
    """Train a byte-level tokenizer on the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{row['instruction']} {row['output']}\nassistant user system" for row in found], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)


def model_of(tokenizer: Any) -> LlamaForCausalLM:
    """Make a random model of two layers."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def teach(model: LlamaForCausalLM, tokenizer: Any, found: list[dict[str, str]]) -> None:
    """Train on the right rows, on their replies alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    right, draw = [row for row in found if row["wrong"] == "False"], random.Random(1)
    for _ in range(STEPS):
        loss = loss_of(model, tokenizer, draw.sample(right, 16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"the elicitor's loss on right rows: {loss.item():.3f}")


def loss_of(model: LlamaForCausalLM, tokenizer: Any, batch: list[dict[str, str]]) -> torch.Tensor:
    """Return the mean NLL per token of the replies."""
    ids, labels = [], []
    for row in batch:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = torch.tensor(tokenizer.apply_chat_template(turns, return_dict=False))
        ids.append(whole)
        labels.append(torch.where(torch.arange(len(whole)) < len(prompt), -100, whole))
    return model(pad_sequence(ids, True), labels=pad_sequence(labels, True, -100)).loss


def main(folder: Path) -> None:
    """Write everything into the folder."""
    folder.mkdir(parents=True)
    found = rows()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    tokenizer = tokenizer_of(found)
    model = model_of(tokenizer)
    for name in ("model", "elicitor"):
        if name == "elicitor":
            teach(model, tokenizer, found)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "experiment.yaml").write_text(CONFIG.format(folder=folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
