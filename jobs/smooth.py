"""`ual smooth` as a Ray job.

ray job submit --working-dir . -- python jobs/smooth.py /shared/scored --out /shared/ual
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("smooth")
