"""`python -m ual_ray` is the `ual` command."""

from ual_ray.cli.app import main

if __name__ == "__main__":
    main()
