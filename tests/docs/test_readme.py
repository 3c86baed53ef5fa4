"""What the documents show works: examples run, commands exist, links and paths lead somewhere."""

import re
from pathlib import Path

import pytest
import tomllib

REPOSITORY = Path(__file__).parents[2]
FOLDERS = (
    "",
    "bindings",
    "bindings/torch",
    "core",
    "core/src/cuda",
    "examples",
    "packages",
    "packages/attn-continual",
    "packages/attn-continual/docs",
    "packages/attn-modules",
    "packages/attn-modules/docs",
    "packages/attn-ops",
    "tests",
    "tests/core/cuda_emulation",
    "tests/core/ptx_machine",
)
OPERATOR = REPOSITORY / "packages/attn-ops/docs/operator.md"  # its neighbour runs perf
DOCUMENTS = sorted(
    [OPERATOR, *(document for folder in FOLDERS for document in (REPOSITORY / folder).glob("*.md"))]
)
TRACKED_PATH = re.compile(r"`((?:bindings|core|examples|packages|requirements|tests)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def name(document):
    return str(document.relative_to(REPOSITORY))


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), flags=re.DOTALL)


def shell_lines():
    return [
        pytest.param(line, id=f"{name(document)}: {line}")
        for document in DOCUMENTS
        for block in blocks(document, "sh")
        for line in block.splitlines()
    ]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=f"{name(document)}: {number}")
        for document in DOCUMENTS
        for number, program in enumerate(blocks(document, "python"))
    ],
)
def test_python_block_runs(warm_python, program):
    done = warm_python.run(program)
    assert done.returncode == 0, done.printed


def test_a_block_that_fails_is_seen(warm_python):
    done = warm_python.run("import warnings; warnings.warn('careful')")
    assert done.returncode == 1
    assert "UserWarning: careful" in done.printed
    assert warm_python.run("print('well')") == (0, "well\n")


@pytest.mark.parametrize("line", shell_lines())
def test_shell_command_exists(warm_python, line):
    inner = re.search(r"\$\((.+?)\)", line)
    program, *arguments = (inner[1] if inner else line).split()
    if program == ".":
        assert arguments[0].endswith("/bin/activate")
    elif program == "./dev":
        assert re.search(rf"^ +{arguments[0]}\) ", (REPOSITORY / "dev").read_text(), re.MULTILINE)
    elif arguments[:2] == ["-m", "attn_ops"]:
        assert warm_python.run_module(*arguments[1:]).returncode == 0
    elif program == "pip":
        for folder, extra in re.findall(r'"(\S+)\[(\w+)\]"', line):
            project = tomllib.loads((REPOSITORY / folder / "pyproject.toml").read_text())
            assert extra in project["project"]["optional-dependencies"]
    else:
        module, *options = arguments[1:]
        done = warm_python.run_module(module, "--help")
        assert done.returncode == 0, done.printed
        assert all(option in done.printed for option in options if option.startswith("--"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [path for path in TRACKED_PATH.findall(text) if not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_sentences_have_their_own_lines(document):
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    crowded = [
        line
        for line in prose.splitlines()
        if not line.startswith("|") and re.search(r"[a-z)`]\. [A-Z]", line)
    ]
    assert not crowded
