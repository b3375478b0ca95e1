"""`python -m datasets`: see `datasets.cli`."""

from datasets.cli import main

if __name__ == "__main__":
    main()
