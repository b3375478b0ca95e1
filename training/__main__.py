"""`python -m training`: see `training.cli`, and `training.promotion.commands` for what concerns the registry."""

import sys

REGISTRY_COMMANDS = ("register", "promote", "rollback", "history", "compare")


def main() -> None:
    """Run the command that was named; the registry's commands need not wait for Lightning."""
    if sys.argv[1:2] and sys.argv[1] in REGISTRY_COMMANDS:
        from training.promotion.commands import main as command

        command(prog_name="python -m training")
    else:
        from training.cli import main as train

        train()


if __name__ == "__main__":
    main()
