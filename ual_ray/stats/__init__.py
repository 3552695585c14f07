"""Pure statistics: metrics, bootstrap, score quality."""
