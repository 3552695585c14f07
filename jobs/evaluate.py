"""Job script: stage 4, evaluation.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/evaluate.py /shared/scored --model /shared/trained/model runtime.address=auto --out /shared/evaluated
"""

import sys

from ual_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
