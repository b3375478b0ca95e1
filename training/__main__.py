"""`python -m training`: see `training.cli`; `training.promotion.commands` for what concerns the registry, and
`training.tuning.command` for the search of hyperparameters."""

import sys

REGISTRY_COMMANDS = ("register", "promote", "rollback", "history", "compare")


def main() -> None:
    """Run the command that was named; the registry's commands need not wait for Lightning."""
    if sys.argv[1:2] and sys.argv[1] in REGISTRY_COMMANDS:
        from training.promotion.commands import main as command

        command(prog_name="python -m training")
    elif sys.argv[1:2] == ["tune"]:
        from training.tuning.command import tune

        tune(sys.argv[2:], prog_name="python -m training tune")
    else:
        from training.cli import main as train

        train()


if __name__ == "__main__":
    main()
