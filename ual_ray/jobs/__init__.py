"""Jobs on a Ray cluster, through Ray's job server: `ual submit` and `ual jobs`.

pack.py         what a job takes along: configuration and files
server.py       reach the job server; find, follow, stop and describe jobs
submit.py       submit a configuration once: the same one follows its running job
"""
