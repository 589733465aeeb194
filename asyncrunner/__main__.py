"""``python -m asyncrunner``: the command line."""

from asyncrunner.cli import main

if __name__ == "__main__":
    main()
