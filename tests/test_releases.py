# SPDX-License-Identifier: Apache-2.0
"""What a release is called and asks for is said in one way, wherever it is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyro_neuralrg

ROOT = Path(pyro_neuralrg.__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_changelog_and_citation_are_of_this_version() -> None:
    releases = re.findall(r"^## \[(.+)\] - (\S+)$", text("CHANGELOG.md"), re.M)
    version, date = releases[0]
    assert version == pyro_neuralrg.__version__
    assert date == "Unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in releases[1:])
    cited = dict(re.findall(r"^([\w-]+): +(\S+)$", text("CITATION.cff"), re.M))
    assert cited["version"] == version
    assert cited.get("date-released", "Unreleased") == date
    assert f'license = "{cited["license"]}"' in text("pyproject.toml")


def test_each_release_says_what_a_user_must_change() -> None:
    sections = re.split(r"^## ", text("CHANGELOG.md"), flags=re.M)[1:]
    assert all("\n### What a user must change\n" in section for section in sections)


def test_the_oldest_versions_are_those_of_the_package() -> None:
    required = re.findall(r'"([\w-]+)>=([\d.]+)"', text("pyproject.toml"))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text(".ci/oldest.txt"), re.M))
    wanted = dict(required)
    for name, version in pinned.items():
        assert re.fullmatch(rf"{re.escape(wanted[name])}(\.0)*", version), name
    block = re.search(r"^dependencies = \[(.*?)^\]", text("pyproject.toml"), re.M | re.S)
    assert block is not None
    needed = re.findall(r'"([\w-]+)>=', block[1])
    assert set(needed) <= set(pinned)


@pytest.mark.parametrize("name", [".ci/run", ".ci/versions"])
def test_scripts_of_the_checks_can_be_run(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111
    assert text(name).startswith("#!/usr/bin/env bash\n")


def test_the_workflow_runs_the_whole_check() -> None:
    assert "- run: .ci/run\n" in text(".github/workflows/ci.yml")
