"""Registering mechanisms and building them from configurations."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from attn_modules import (
    ATTENTION_REGISTRY,
    Attention,
    AttentionConfig,
    build_attention,
    register_attention,
)
from attn_modules import registry as registry_module
from attn_modules.mechanisms.scaled_dot_product import ScaledDotProduct


@pytest.fixture
def registry(monkeypatch):
    """Give each test a registry that forgets what the test registers."""
    monkeypatch.setattr(ATTENTION_REGISTRY, "_registered", dict(ATTENTION_REGISTRY._registered))
    return ATTENTION_REGISTRY


def mechanism(name="Own"):
    """Return a new class of Attention."""

    class Own(Attention):
        def __init__(self, dropout=0.0, module=None, size=3):
            super().__init__(dropout)
            self.module, self.size = module, size

        def forward(self, *operands):
            return operands[-1]

    Own.__name__ = name
    return Own


def test_every_mechanism_of_the_package_is_found():
    for name, (file, class_name) in registry_module.MECHANISMS.items():
        constructor, config = ATTENTION_REGISTRY[name]
        assert constructor.__name__ == class_name
        assert constructor.__module__.endswith(f"mechanisms.{file}")
        assert issubclass(config, AttentionConfig)
    assert set(ATTENTION_REGISTRY) >= set(registry_module.MECHANISMS)


def test_importing_the_package_is_quick_and_imports_no_torch():
    code = "import sys, attn_modules; print('torch' in sys.modules, attn_modules.__version__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.split()[0] == "False"


def test_mapping_and_configuration_build_the_same():
    config = {"name": "scaled_dot_product", "dropout": 0.25, "causal": True, "seq_len": None}
    before = dict(config)
    for given in (config, ATTENTION_REGISTRY["scaled_dot_product"].config(**config)):
        built = build_attention(given)
        assert isinstance(built, ScaledDotProduct)
        assert (built.dropout, built.causal, built.seq_len) == (0.25, True, None)
    assert config == before


def test_own_mechanism_is_built_with_its_modules_uncopied(registry):
    own = register_attention("own")(mechanism())
    module = torch.nn.Linear(2, 2)
    built = build_attention({"name": "own", "module": module, "size": 5})
    assert type(built) is own
    assert built.module is module
    assert built.size == 5
    assert registry["own"].constructor is own


def test_own_configuration_says_which_fields_there_are(registry):
    @dataclass
    class OwnConfig(AttentionConfig):
        size: int = 7

    register_attention("own", OwnConfig)(mechanism())
    assert registry["own"].config is OwnConfig
    assert build_attention({"name": "own"}).size == 7
    with pytest.raises(TypeError, match="got 'module'"):
        build_attention({"name": "own", "module": None})


def test_names_and_classes_are_registered_once(registry):
    register_attention("own")(mechanism())
    with pytest.raises(ValueError, match="expected a new name, got 'own'"):
        register_attention("own")(mechanism("Another"))
    with pytest.raises(ValueError, match="expected a new name, got 'local'"):
        register_attention("local")(mechanism("Another"))
    with pytest.raises(ValueError, match="expected a new class name, got Own"):
        register_attention("other")(mechanism())
    with pytest.raises(ValueError, match="expected a new class name, got ScaledDotProduct"):
        register_attention("other")(mechanism("ScaledDotProduct"))
    with pytest.raises(ValueError, match="expected a subclass of Attention"):
        register_attention("other")(torch.nn.Linear)
    assert "other" not in registry


def test_unknown_names_and_fields_tell_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'scaled_dot_product'"):
        build_attention({"name": "scaled_dotproduct"})
    with pytest.raises(TypeError, match="got 'casual'; did you mean 'causal'"):
        build_attention({"name": "scaled_dot_product", "casual": True})
    with pytest.raises(KeyError, match="name"):
        build_attention({"dropout": 0.1})
    with pytest.raises(TypeError, match="seq_len"):
        build_attention({"name": "linformer", "dropout": 0.0})


def test_base_is_abstract_and_checks_dropout():
    with pytest.raises(TypeError, match="abstract"):
        Attention()
    with pytest.raises(ValueError, match="expected dropout"):
        ScaledDotProduct(dropout=1.5)
