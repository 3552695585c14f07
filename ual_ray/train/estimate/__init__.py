"""Resource estimate of a training (`ual train --dry-run`)."""
