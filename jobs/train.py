"""Job script: stage 3, fine-tuning.

ray job submit --working-dir . -- python jobs/train.py /shared/ual runtime.address=auto --out /shared/trained
"""

import sys

from ual_ray.cli.app import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
