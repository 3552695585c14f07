"""Job script: stage 4, evaluation.

ray job submit --working-dir . -- python jobs/evaluate.py /shared/scored --model /shared/trained/model --out /shared/evaluated
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
