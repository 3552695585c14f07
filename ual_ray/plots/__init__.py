"""Every figure, once."""
