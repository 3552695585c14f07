"""Uncertainty-aware learning inside the trainer you already have: rows with an `alpha` column, and two wrappers.

transformers:

    from transformers import DataCollatorForSeq2Seq, Trainer
    from ual_ray.integrations import SmoothedCollator, smoothed, smoothed_loss

    Trainer(
        smoothed(model),
        arguments,
        data_collator=SmoothedCollator(DataCollatorForSeq2Seq(tokenizer)),
        compute_loss_func=smoothed_loss,
        train_dataset=rows,  # input_ids, labels, alpha
    )

TRL: `ual_ray.integrations.trl.SmoothedSFTTrainer` in place of SFTTrainer, with the same arguments and rows that have an
`alpha` column; with packing and padding-free batches too. What `ual smooth` writes is such a data set, as long as its messages
are text alone: TRL would not read their tool calls or reasoning.
"""

from ual_ray.integrations.forward import SmoothedCollator, SmoothedOutput, smoothed, smoothed_loss

__all__ = ["SmoothedCollator", "SmoothedOutput", "smoothed", "smoothed_loss"]
