"""Stage 5: results side by side, as a table on the terminal, as Markdown, as plots."""
