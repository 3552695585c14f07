"""The command line. No maths and no Ray: each command imports what it needs when it runs, so that `ual --help` is fast.

app.py        the list of commands, --version, the entry point
arguments.py  options that commands share, the configuration read from them, and what a command for a single stage sets up:
              folder lock, log file, MLflow; how it finds its input
pipeline.py   run; submit; jobs list, status, logs, stop
stages.py     elicit, smooth, train, evaluate, judge, report
inspect.py    preview, inspect, config
experiment.py experiment, pilot
health.py     doctor, plan
tracking.py   ui, sync, promote
"""
