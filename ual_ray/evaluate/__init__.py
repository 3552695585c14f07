"""Stage 4: what a model is worth on rows that nothing was trained on."""
