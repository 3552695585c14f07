"""`ual experiment` as a Ray job.

ray job submit --working-dir . -- python jobs/experiment.py jobs/configs/controls.yaml runtime.address=auto output=/shared/exp
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("experiment")
