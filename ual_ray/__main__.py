"""`python -m ual_ray` is the `ual` command."""

from ual_ray.cli import main

if __name__ == "__main__":
    main()
