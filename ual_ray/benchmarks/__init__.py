"""Benchmarks, one file each: how an answer is read and scored."""
