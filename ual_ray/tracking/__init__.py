"""MLflow tracking: runs, lineage tags, data sets, plots, registered models, and a spool on disk for outages.

Only this package imports mlflow. The driver owns every run. Logging never fails a job: while the store is unreachable,
operations are kept on disk, then sent in order; operations that it rejects are counted, logged, kept, and reported at the end.

Nothing is imported here: a watcher (`python -m ual_ray.tracking.watcher`) must start without the cost of MLflow.
"""

# Tag: the process that holds a run open. A run that another process has reopened must not be closed by this one.
HOLDER = "ual_ray.process"
