"""Job script: the whole pipeline.

ray job submit --working-dir . -- python jobs/pipeline.py jobs/configs/demo.yaml runtime.address=auto output=/shared/runs/demo
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
