"""`ual report` as a Ray job.

ray job submit --working-dir . -- python jobs/report.py /shared/evaluated --out /shared/report
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("report")
