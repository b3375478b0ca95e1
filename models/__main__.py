"""`python -m models`: see `models.cli`."""

from models.cli import main

if __name__ == "__main__":
    main(prog_name="python -m models")
