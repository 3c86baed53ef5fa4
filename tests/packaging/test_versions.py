"""The distributions of this repository carry one release, and ask for each other in it."""

import importlib
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
PROJECTS = [
    tomllib.loads(path.read_text())["project"]
    for path in sorted((REPOSITORY / "packages").glob("*/pyproject.toml"))
]
OWN_NAMES = {project["name"] for project in PROJECTS}


def test_all_carry_one_release():
    assert len(PROJECTS) > 1
    assert len({project["version"] for project in PROJECTS}) == 1


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project["name"])
def test_the_package_says_the_release_of_its_distribution(project):
    package = importlib.import_module(project["name"].replace("-", "_"))
    assert package.__version__ == project["version"]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project["name"])
def test_they_require_each_other_in_this_release(project):
    for requirement in map(Requirement, project.get("dependencies", ())):
        if requirement.name in OWN_NAMES:
            assert str(requirement.specifier) == f"=={project['version']}"
