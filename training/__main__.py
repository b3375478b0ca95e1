"""`python -m training` is `tilewise train`."""

from tilewise.training.cli import train

if __name__ == "__main__":
    train(prog_name="python -m training")
