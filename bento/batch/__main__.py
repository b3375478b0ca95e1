"""`python -m bento.batch`."""

from tilewise.bento.batch.cli import main

if __name__ == "__main__":  # processes that work on scenes import this file too
    main(prog_name="python -m bento.batch")
