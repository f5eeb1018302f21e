"""Run the command line with `python -m vl2`, the same as the command `vl2`."""

from vl2.cli.main import main

if __name__ == "__main__":
    main()
