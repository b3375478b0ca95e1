"""`python -m tilewise`: the same as the command `tilewise`."""

from tilewise.cli import main

if __name__ == "__main__":  # multiprocessing imports this file in its workers, too
    main(prog_name="tilewise")
