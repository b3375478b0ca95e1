"""`python -m training`: see `training.cli`; `training.promotion.commands` for what concerns the registry, and
`training.tuning.command` for the search of hyperparameters, `training.assess` for what a model file is worth, and
`training.leave_out` for what it makes of classes that it never saw, `training.spread` for what seeds make of a recipe,
`training.agreement` for what they make of tiles without labels, `training.pretraining` for learning without labels, and
`training.retraining` for the way from a reason to retrain to a candidate."""

import sys
from pkgutil import resolve_name

REGISTRY_COMMANDS = ("register", "promote", "rollback", "history", "compare")
COMMANDS = {
    "tune": "training.tuning.command:tune",
    "assess": "training.assess.command:assess",
    "leave-out": "training.leave_out.command:leave_out",
    "spread": "training.spread:spread",
    "agreement": "training.agreement:agreement",
    "pretrain": "training.pretraining.command:pretrain",
    "pseudo-label": "training.pseudo_labels:main",
    "retrain": "training.retraining.command:command",
}
"""Commands of their own by name; each is imported when it is called, for none needs all that the others do."""


def main() -> None:
    """Run the command that was named; the registry's commands need not wait for Lightning."""
    name = sys.argv[1] if sys.argv[1:] else ""
    if name in REGISTRY_COMMANDS:
        from training.promotion.commands import main as command

        command(prog_name="python -m training")
    elif name in COMMANDS:
        resolve_name(COMMANDS[name])(sys.argv[2:], prog_name=f"python -m training {name}")
    else:
        from training.cli import main as train

        train()


if __name__ == "__main__":
    main()
