"""The command `tilewise`: one group for everything; a command's module is imported only when it is called."""

import sys
from pkgutil import resolve_name

import click

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Use a model": {
        "classify": ("tilewise.bento.client.cli:main", "Classify tiles by a service."),
        "batch": ("tilewise.bento.batch.cli:main", "Classify folders of scenes: maps, tables, a report."),
        "serve": ("tilewise.bento.serve_cli:serve", "Serve a model behind an HTTP API, with a page."),
        "stream": ("tilewise.bento.stream.cli:main", "Classify scenes that a queue tells of."),
        "explain": ("tilewise.models.cli:explain", "Show which pixels and bands drove an answer."),
        "build": ("tilewise.bento.build:main", "Build a bento: code and model in one."),
    },
    "Data": {
        "data": ("tilewise.datasets.cli:main", "Fetch, make, check, pack, review and compare labelled tiles."),
    },
    "Train and measure": {
        "train": ("tilewise.training.cli:train", "Train, test and export a network; `tilewise train --help` has more."),
        "export": ("tilewise.training.cli:export", "Calibrate a run's best checkpoint and write its model file."),
        "tune": ("tilewise.training.tuning.cli:tune", "Search for better hyperparameters."),
        "assess": ("tilewise.training.evaluate.assess:assess", "Measure a model file on a pack."),
        "predict": ("tilewise.models.cli:predict", "Write a model's answers on the tiles of a pack as a table."),
        "card": ("tilewise.models.cli:card", "Write the card of a model file."),
    },
    "Registry": {
        "register": ("tilewise.training.registry.cli:register", "Make a run's model the candidate."),
        "promote": (
            "tilewise.training.registry.cli:promote",
            "Make the candidate the champion, if it passes the gates.",
        ),
        "rollback": ("tilewise.training.registry.cli:rollback", "Make the champion before this one champion again."),
        "history": ("tilewise.training.registry.cli:history", "List model versions and who moved them."),
        "compare": ("tilewise.training.registry.cli:compare", "Compare training runs side by side."),
        "retrain": (
            "tilewise.training.registry.retrain_cli:command",
            "Retrain where there is a reason, up to the gates.",
        ),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and listed in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of the sections."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = resolve_name(COMMANDS[cmd_name][0])
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in sections, without importing them."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tilewise")
def main() -> None:
    """Classify Sentinel-2 tiles and scenes: train, export, serve, map."""


if __name__ == "__main__":
    sys.exit(main())
