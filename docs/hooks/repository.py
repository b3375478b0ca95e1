"""Build one site from docs/ and the READMEs beside it, by the same relative links that work on GitHub.

MkDocs knows the files below docs/ only. This hook adds the README of the project and of each folder as
pages, and turns links that leave docs/ into links to these pages or, if there is none, to the file in the
repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PROJECT = Path(__file__).parents[2]
DOCS = "docs"
ICON = "bento/page/icon.svg"
_INDEX = "README.md"
_FOLDERS = (
    "datasets",
    "models",
    "models/pretrained/accurate",  # a model's card
    "models/pretrained/fast",
    "training",
    "bento",
    "configs",
    "notebooks",
    "tests",
    "benchmarks",
    "deploy",
)
_BESIDE = {"README.md": "start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_EVERY = "/*"  # in the nav: all pages of a folder but its index
_FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:|[/#])([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as GitHub does, and expand `folder/*` in the nav."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slugify(case="lower")}
    config.nav = _expand(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the icon of the service's page."""
    for path, name in {**beside(), ICON: "icon.svg"}.items():
        files.append(File.generated(config, name, abs_src_path=str(PROJECT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the page's links to their targets on the site."""
    source = config.extra["source"]
    parts = _FENCED.split(markdown)  # odd parts are code blocks
    parts[::2] = [_LINK.sub(lambda m: _relink(m, page.file.src_uri, source), part) for part in parts[::2]]
    return "".join(parts)


def beside() -> dict[str, str]:
    """Return {path in the repository: name on the site} of the pages outside docs/."""
    rooms = {f"{room}/{_INDEX}": f"rooms/{room.replace('/', '-')}.md" for room in _FOLDERS}
    return _BESIDE | {path: name for path, name in rooms.items() if (PROJECT / path).is_file()}


def site_link(page: str, target: str, source: str) -> str:
    """Return the link on the site's page `page` for `target`, which is relative to the page's own file.

    Args:
        page: name on the site, as of `beside`.
        source: address of the repository.
    """
    at = {name: path for path, name in beside().items()}.get(page, f"{DOCS}/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
    if (PROJECT / path / _INDEX).is_file():
        path = f"{path}/{_INDEX}"
    name = beside().get(path) or (path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else None)
    if name and (PROJECT / path).is_file():
        return posixpath.relpath(name, posixpath.dirname(page) or ".")
    kind = "tree" if (PROJECT / path).is_dir() else "blob"
    return f"{source}/{kind}/main/{path}" if (PROJECT / path).exists() else target


def _relink(match: re.Match[str], page: str, source: str) -> str:
    return f"]({site_link(page, match[1], source)}{match[2] or ''})"


def _expand(nav: object) -> object:
    """Replace `folder/*` by the folder's pages, by name."""
    if isinstance(nav, dict):
        return {title: _expand(item) for title, item in nav.items()}
    if not isinstance(nav, list):
        return nav
    expanded: list[object] = []
    for item in nav:
        is_folder = isinstance(item, str) and item.endswith(_EVERY)
        expanded += _pages(str(item).removesuffix(_EVERY)) if is_folder else [_expand(item)]
    return expanded


def _pages(folder: str) -> list[str]:
    if folder == "rooms":
        return [name for name in beside().values() if PurePosixPath(name).parent.name == folder]
    return [
        f"{folder}/{path.name}"
        for path in sorted((PROJECT / DOCS / folder).glob("*.md"))
        if path.name != _INDEX
    ]
