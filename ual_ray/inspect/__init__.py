"""Reports on scores and rows before training: `ual inspect`, `ual preview`."""
