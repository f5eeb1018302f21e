"""`python -m vl2`: the command line, as `vl2` starts it."""

from vl2.cli.main import main

if __name__ == "__main__":
    main()
