"""`ual evaluate` as a Ray job.

ray job submit --working-dir . -- python jobs/evaluate.py /shared/trained/model --rows /shared/scored --out /shared/evaluated
"""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main("evaluate")
