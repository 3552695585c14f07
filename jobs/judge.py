"""`ual judge` as a Ray job.

ray job submit --working-dir . -- python jobs/judge.py /shared/a /shared/b judge.model=demo runtime.address=auto --out /shared/ab
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("judge")
