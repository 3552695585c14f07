"""Job script: stage 5, the report.

ray job submit --working-dir . -- python jobs/report.py /shared/evaluated --out /shared/report
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "report")
    main()
