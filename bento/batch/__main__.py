"""`python -m bento.batch`, in a checkout: the same as `tilewise batch`."""

from tilewise.bento.batch.cli import main

if __name__ == "__main__":  # multiprocessing imports this file in its workers, too
    main(prog_name="python -m bento.batch")
