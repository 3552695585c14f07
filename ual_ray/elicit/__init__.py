"""Stage 1: how uncertain a capable model is of each instruction-response pair."""
