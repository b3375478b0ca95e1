"""`python -m training`: see `training.cli`; `training.promotion.commands` for what concerns the registry, and
`training.tuning.command` for the search of hyperparameters, `training.assess` for what a model file is worth, and
`training.leave_out` for what it makes of classes that it never saw, `training.spread` for what seeds make of a recipe,
and `training.retraining` for the way from a reason to retrain to a candidate."""

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
    elif sys.argv[1:2] == ["assess"]:
        from training.assess.command import assess

        assess(sys.argv[2:], prog_name="python -m training assess")
    elif sys.argv[1:2] == ["leave-out"]:
        from training.leave_out.command import leave_out

        leave_out(sys.argv[2:], prog_name="python -m training leave-out")
    elif sys.argv[1:2] == ["spread"]:
        from training.spread import spread

        spread(sys.argv[2:], prog_name="python -m training spread")
    elif sys.argv[1:2] == ["pseudo-label"]:
        from training.pseudo_labels import main as pseudo_label

        pseudo_label(sys.argv[2:], prog_name="python -m training pseudo-label")
    elif sys.argv[1:2] == ["retrain"]:
        from training.retraining.command import command as retrain

        retrain(sys.argv[2:], prog_name="python -m training retrain")
    else:
        from training.cli import main as train

        train()


if __name__ == "__main__":
    main()
