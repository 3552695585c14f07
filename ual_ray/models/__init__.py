"""Models by name: resolving, chat rendering."""
