"""Documents: links resolve, every page is in the nav, folder READMEs are complete, the site builds."""

import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import click
import pytest
import yaml

from tilewise.cli import main as tilewise

PROJECT = Path(__file__).parents[1]
FOLDERS = ("datasets", "models", "training", "bento", "configs", "notebooks", "tests", "benchmarks", "deploy")
UNLISTED = ("README.md", "__init__.py", "__main__.py")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


@cache
def tracked() -> tuple[str, ...]:
    """What git knows and is there."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=True
    )
    return tuple(name for name in listed.stdout.splitlines() if (PROJECT / name).is_file())


PAGES = [name for name in tracked() if name.endswith(".md")]


@cache
def prose(page: Path) -> str:
    """A page's text without what stands between fences."""
    return FENCED.sub("", page.read_text())


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(name: str) -> None:
    page = PROJECT / name
    for target, anchor in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / target) if target else page
        assert found.exists(), f"{name} links to {target}, which is not there"
        assert found.resolve().is_relative_to(PROJECT), f"{name} links to {target}, outside the repository"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), (
                f"{name} links to {target}#{anchor}; no heading there is called so"
            )


@pytest.mark.parametrize("name", PAGES)
def test_lists_begin_after_an_empty_line_as_markdown_outside_github_wants(name: str) -> None:
    lines = prose(PROJECT / name).splitlines()
    item = re.compile(r"(?:[-*]|\d+\.) ")
    for before, line in pairwise(lines):
        glued = (
            item.match(line)
            and before.strip()
            and not before.startswith((" ", "#"))
            and not item.match(before)
        )
        assert not glued, f"{name}: put an empty line before {line!r}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_names_its_subfolders_and_the_files_directly_in_it(folder: str) -> None:
    readme = prose(PROJECT / folder / "README.md")
    inside = [PurePosixPath(name).relative_to(folder) for name in tracked() if name.startswith(f"{folder}/")]
    files = {path.name for path in inside if len(path.parts) == 1} - set(UNLISTED)
    if folder == "tests":
        files = {name for name in files if not name.startswith("test_")}
    subfolders = {f"{path.parts[0]}/" for path in inside if len(path.parts) > 1}
    missing = (files | subfolders) - set(re.findall(r"`([\w./-]+)`", readme))
    assert sorted(missing) == [], f"name them in {folder}/README.md"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_readme_lists_nothing_that_is_not_there(folder: str) -> None:
    first_columns = re.findall(r"^\| (`.*?) \|", prose(PROJECT / folder / "README.md"), re.MULTILINE)
    listed = [name for column in first_columns for name in re.findall(r"`([\w-]+(?:[./][\w./-]*))`", column)]
    assert listed != []
    assert [name for name in listed if not (PROJECT / folder / name).exists()] == []


def test_the_index_of_decisions_lists_each_under_a_number_of_its_own() -> None:
    decisions = [PurePosixPath(name).name for name in PAGES if re.match(r"docs/decisions/\d", name)]
    listed = re.findall(
        r"^\| (\d{4}) \| \[[^\]]+\]\((\1-[\w-]+\.md)\) \|$", read("docs/decisions/README.md"), re.M
    )
    assert [name for _, name in listed] == sorted(decisions)
    assert len({number for number, _ in listed}) == len(listed)


def test_every_page_of_docs_has_a_place_on_the_site() -> None:
    placed = set(flat(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    pages = [PurePosixPath(name).relative_to("docs") for name in PAGES if name.startswith("docs/")]
    lost = [str(page) for page in pages if not placed & {str(page), f"{page.parent}/*"}]
    assert lost == [], "give them a line in the nav of mkdocs.yml"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    for name, html in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\s\">]+)", html)
        loaded += re.findall(
            r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)[^>]+href=\"?(https?:[^\s\">]+)", html
        )
        assert loaded == [], f"{name} loads {loaded}"
    # Links that leave docs/ lead to pages of the site where there is one, and else into the repository.
    assert 'href="start.html' in pages["index.html"]
    assert 'href="docs/' not in pages["start.html"]
    assert 'href="serving.html"' in pages["start.html"]
    assert re.search(r'href="https://[^"]+/blob/main/configs/pipeline\.yaml"', pages["start.html"])
    assert 'href="../data.html"' in pages["rooms/datasets.html"]


def documented_commands() -> list[tuple[str, str]]:
    """Return (page, command line) of every `tilewise …` in the code blocks and code spans of the guides."""
    found = []
    for name in PAGES:
        if name in ("CHANGELOG.md", "docs/lifecycle.md") or name.startswith("docs/decisions/00"):
            continue  # former names; a printed log
        text = re.sub(r"\\\n\s*", " ", (PROJECT / name).read_text())
        blocks = "\n".join(FENCED.findall(text))
        lines = re.findall(r"^(?:\$ )?(tilewise [^\n#|;&]+)", blocks, re.MULTILINE)
        found += [(name, line) for line in lines + re.findall(r"`(tilewise [^`\n]+)`", text)]
    return found


def problem_of(line: str) -> str | None:
    """Return what is wrong with a documented command line: no such command, or an option that it lacks."""
    command: click.Command = tilewise
    context = click.Context(command)
    words = re.sub(r"(['\"]).*?\1", "TEXT", line).split()[1:]
    while words and isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        subcommand = command.get_command(context, words.pop(0))
        if subcommand is None:
            return "no such command"
        command = subcommand
    if isinstance(command, click.Group) or command.context_settings.get("ignore_unknown_options"):
        return None  # `tilewise train` passes options on to Lightning, which checks them
    options = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    return ", ".join(sorted(used - options - {"--help", "--version"})) or None


def test_documented_commands_and_options_exist() -> None:
    commands = documented_commands()
    assert len(commands) > 80
    wrong = [f"{page}: {line.strip()}: {problem}" for page, line in commands if (problem := problem_of(line))]
    assert wrong == []


def read(name: str) -> str:
    return (PROJECT / name).read_text()


def flat(nav: Any) -> list[str]:
    """The pages of a nav, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in flat(item)]
