"""MLflow: the only package that imports it. Runs, lineage tags, data sets, figures, registered models, and a spool for outages.

The driver owns every run. Logging never takes the job down: what the store cannot take now is kept on disk, in order, and sent
when it answers again; what it refuses is counted, logged, kept aside, and reported at the end.

Nothing is imported here: a watcher (`python -m ual_ray.tracking.watcher`) must start without the cost of MLflow.
"""
