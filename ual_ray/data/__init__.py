"""From a user's file, or the embedded sample, to canonical rows; from a model's name to its directory."""
