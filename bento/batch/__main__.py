"""`python -m bento.batch`."""

from bento.batch.cli import main

main(prog_name="python -m bento.batch")
