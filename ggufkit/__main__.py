"""`python -m ggufkit`: the command line."""

from ggufkit.cli import main

if __name__ == "__main__":
    main()
