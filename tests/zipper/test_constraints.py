"""Exact versions of all that is set up, and known weaknesses of them."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reproduce import ROOT

PINNED = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PLACES = [
    {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    | {"platform_machine": machine, "platform_system": name, "implementation_name": "cpython"}
    for python in ("3.11", "3.12")
    for system, machine, name in (("linux", "x86_64", "Linux"), ("darwin", "arm64", "Darwin"))
]


def direct() -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from (one for one in map(Requirement, words) if one.name != "zipper")


@pytest.mark.parametrize(
    "place", PLACES, ids=lambda place: f"{place['sys_platform']}-{place['python_version']}"
)
def test_every_direct_dependency_has_one_version_within_its_bounds(place):
    versions: dict[str, list[str]] = {}
    for line in map(Requirement, PINNED):
        if line.marker is None or line.marker.evaluate(place):
            (exact,) = line.specifier
            versions.setdefault(canonicalize_name(line.name), []).append(exact.version)
    assert all(len(found) == 1 for found in versions.values())
    wanted = list(direct())
    assert len(wanted) > 25
    for one in wanted:
        assert one.specifier.contains(versions[canonicalize_name(one.name)][0]), one


def test_constraints_hold_names_and_exact_versions_alone():
    """No address of an index, no path, no option, no editable install."""
    assert [
        line for line in PINNED if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; [\w\s.'<>=!()]+)?", line)
    ] == []


def test_lightning_that_runs_code_of_checkpoints_is_refused():
    (bounds,) = {one.specifier for one in direct() if one.name == "lightning"}
    assert not any(bounds.contains(version) for version in ("2.6.0", "2.6.2", "2.6.3", "2.6.5"))
    assert bounds.contains("2.6.6")


def test_every_way_to_set_up_uses_the_constraints():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^PIP\s+:= .*--constraint constraints\.txt", makefile, re.M)
    assert not re.search(r"^\t.*/pip install", makefile, re.M)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert "-c constraints.txt" in conda["dependencies"][-1]["pip"]


def package(name: str, *fixes: list[str]) -> dict:
    return {"name": name, "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": one} for one in fixes]}


SKIPPED = {"name": "b", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (json.dumps({"dependencies": [package("a"), SKIPPED]}), 0, "1 of 2 packages checked, 0 known"),
        (json.dumps({"dependencies": [package("a", ["2"])]}), 1, "a 1: CVE-1, fixed in 2"),
        (json.dumps({"dependencies": [package("a", [])]}), 0, "a 1: CVE-1, no fix yet"),
        (json.dumps({"dependencies": [SKIPPED]}), 0, "cannot be reached, none of 1 packages was checked"),
        ("", 0, "cannot be reached, nothing was checked"),
    ],
)
def test_a_weakness_with_a_fix_fails_and_an_unreachable_service_does_not(tmp_path, said, status, words):
    (tmp_path / "pip_audit.py").write_text(f"print({said!r})", encoding="utf-8")
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), "constraints.txt"]
    found = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, encoding="utf-8", check=False
    )
    assert (found.returncode, words in found.stdout) == (status, True), found


def test_torch_and_torchaudio_are_of_one_version():
    """torchaudio is built for one minor version of torch."""
    bounds = {one.name: str(one.specifier) for one in direct() if one.name in ("torch", "torchaudio")}
    assert len(bounds) == 2
    assert len({*bounds.values()}) == 1
    assert all(re.fullmatch(r"==\d+\.\d+\.\*", one) for one in bounds.values())
