"""`ual doctor`: check this machine, its cluster and its network before a run, with a fix for each finding.

findings.py  a finding; run all checks, each with a timeout
machine.py   versions against the bounds of pyproject.toml; memory, /dev/shm, disk at the output
cluster.py   Ray's address and resources; GPUs and NCCL, each asked in a process of its own
network.py   MLflow, the hub, tokens
checks.py    the list of checks
"""
