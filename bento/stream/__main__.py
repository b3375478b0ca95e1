"""`python -m bento.stream`."""

from bento.stream.cli import main

if __name__ == "__main__":
    main(prog_name="python -m bento.stream")
