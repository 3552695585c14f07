"""`ual elicit` as a Ray job.

ray job submit --working-dir . -- python jobs/elicit.py /shared/rows.jsonl runtime.address=auto --out /shared/scored
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("elicit")
