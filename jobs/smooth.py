"""Job script: stage 2, smoothing.

ray job submit --working-dir . -- python jobs/smooth.py /shared/scored --out /shared/ual
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "smooth")
    main()
