"""`python -m dtrain` is `dtrain`."""

from dtrain.cli.main import main

if __name__ == "__main__":
    main()
