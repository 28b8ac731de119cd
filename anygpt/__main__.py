"""`python -m anygpt`: the command line, also from a checkout that isn't installed."""

from anygpt.cli.main import main

if __name__ == "__main__":
    main()
