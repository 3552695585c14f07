"""`ual train` as a Ray job.

ray job submit --working-dir . -- python jobs/train.py /shared/ual runtime.address=auto --out /shared/trained
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("train")
