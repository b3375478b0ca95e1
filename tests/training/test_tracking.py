import re

from tilewise.training.tracking import code_revision, environment


def test_the_revision_is_a_git_hash_and_tells_whether_files_were_changed() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|", code_revision())


def test_the_environment_lists_the_packages_that_matter_with_versions() -> None:
    text = environment()
    assert text.startswith("# Python 3.")
    for name in ("torch", "onnxruntime", "pytorch-lightning"):
        assert re.search(rf"^{name}==\d", text, re.MULTILINE | re.IGNORECASE)
