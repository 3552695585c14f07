"""Names in an output folder: of what MLflow keeps there, of the file that ends a checkpoint; and of working folders."""

from __future__ import annotations

STORE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "mlflow-artifacts"
SPOOL_FOLDER = "mlflow-spool"
PROGRESS_FILE = "progress.json"
# In the cache of this machine: where commands work whose output is a URI.
WORKING_FOLDERS = "outputs"
# Next to a working folder: its URI.
URI_FILE = "uri"
# In the cache of another machine of the cluster: what it reads of such a folder.
COPIES_FOLDER = "copies"
