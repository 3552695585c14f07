"""`ual run` as a Ray job.

ray job submit --working-dir . -- python jobs/pipeline.py -c jobs/configs/demo.yaml runtime.address=auto output=/shared/demo
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("run")
