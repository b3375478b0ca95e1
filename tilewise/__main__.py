"""`python -m tilewise` is the command `tilewise`."""

from tilewise.cli import main

if __name__ == "__main__":  # processes that batch inference starts import this file too
    main(prog_name="tilewise")
