"""The command `tilewise`: one group for all commands, each imported only when it runs."""

import click

from tilewise.datasets.core.console import CONTEXT, Entry, LazyGroup

SECTIONS = {
    "First steps": {
        "demo": Entry(
            "tilewise.demo:demo", "Train on synthetic tiles and map a synthetic scene, in minutes."
        ),
    },
    "Train and measure": {
        "train": Entry("tilewise.training.__main__:train", "Train, test and export a network.", "train"),
        "assess": Entry(
            "tilewise.training.evaluate.assess:assess", "Measure a model file on a pack.", "train"
        ),
        "tune": Entry("tilewise.training.tuning.cli:tune", "Search for better hyperparameters.", "train"),
        "export": Entry("tilewise.training.cli:export", "Calibrate a run and write its model file.", "train"),
        "predict": Entry("tilewise.models.cli:predict", "Write a model's answers on the tiles of a pack."),
    },
    "Registry": {
        "register": Entry(
            "tilewise.training.registry.cli:register", "Make a run's model the candidate.", "train"
        ),
        "promote": Entry(
            "tilewise.training.registry.cli:promote",
            "Make the candidate the champion, if it passes the gates.",
            "train",
        ),
        "rollback": Entry(
            "tilewise.training.registry.cli:rollback",
            "Make the previous champion the champion again.",
            "train",
        ),
        "history": Entry(
            "tilewise.training.registry.cli:history", "List what happened to each version, and why.", "train"
        ),
        "runs": Entry("tilewise.training.registry.cli:runs", "Compare training runs side by side.", "train"),
        "retrain": Entry(
            "tilewise.training.registry.retrain_cli:command",
            "Retrain where there is a reason, up to the gates.",
            "train",
        ),
    },
    "Use a model": {
        "serve": Entry("tilewise.bento.serve_cli:serve", "Serve a model by HTTP, with a page for browsers."),
        "batch": Entry("tilewise.bento.batch.cli:main", "Classify scenes into maps and tables."),
        "compare": Entry(
            "tilewise.bento.batch.compare_cli:compare", "Tell what changed between the maps of two dates."
        ),
        "stream": Entry("tilewise.bento.stream.cli:main", "Classify scenes announced by a queue.", "stream"),
        "classify": Entry("tilewise.classify_cli:classify", "Classify single tiles, here or by a service."),
        "build": Entry("tilewise.bento.build:main", "Package code and model as a bento."),
    },
    "Data": {
        "data": Entry("tilewise.datasets.cli:main", "Fetch, make, check, pack, review and compare tiles."),
    },
    "Understand a model": {
        "explain": Entry("tilewise.models.cli:explain", "Show which pixels and bands an answer depends on."),
        "card": Entry("tilewise.models.cli:card", "Write the card of a model file."),
    },
}


@click.group(cls=LazyGroup, sections=SECTIONS, context_settings=CONTEXT)
@click.version_option(package_name="tilewise")
def main() -> None:
    """Classify the land cover of Sentinel-2 tiles and scenes: train, export, serve, map.

    \b
      tilewise demo                              # the whole path in minutes, without a download
      tilewise classify tile.tif                 # with the weights that ship
      tilewise batch scenes --out maps
      tilewise serve                             # http://localhost:3000

    \b
    Shell completion, for one session or in ~/.bashrc:
      eval "$(_TILEWISE_COMPLETE=bash_source tilewise)"      # or zsh_source
    """
