"""Job script: stage 1, scoring.

ray job submit --working-dir . -- python jobs/elicit.py /shared/rows.jsonl runtime.address=auto --out /shared/scored
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "elicit")
    main()
