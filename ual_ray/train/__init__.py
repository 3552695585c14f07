"""Stage 3: fine-tuning with a smoothing value per token, sharded by FSDP2 under Ray Train."""
