"""Registering mechanisms and building them from configurations."""

import pickle
import re
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


@pytest.mark.usefixtures("registry")
def test_own_configuration_may_have_fields_without_defaults():
    @dataclass
    class PowerConfig(AttentionConfig):
        power: int

    class Power(Attention):
        def __init__(self, dropout, power, size=3):
            super().__init__(dropout)
            self.power, self.size = power, size

        def forward(self, *operands):
            return operands[-1]

    register_attention("power", PowerConfig)(Power)
    for config in ({"name": "power", "power": 2}, PowerConfig("power", None, 2)):
        built = build_attention(config)
        assert (built.dropout, built.power, built.size) == (0.0, 2, 3)
    with pytest.raises(TypeError, match="expected power for 'power', got none"):
        build_attention({"name": "power"})


def test_the_base_configuration_needs_a_name_alone():
    assert AttentionConfig("local") == AttentionConfig(name="local", dropout=None)
    assert AttentionConfig("local", 0.5).dropout == 0.5
    with pytest.raises(TypeError, match="name"):
        AttentionConfig()


@pytest.mark.parametrize("name", registry_module.MECHANISMS)
def test_configurations_and_their_classes_can_be_pickled(name):
    config_class = ATTENTION_REGISTRY[name].config
    config = config_class(name, dropout=0.5)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301  what was pickled here
    assert pickle.loads(pickle.dumps(config_class)) is config_class  # noqa: S301
    assert config_class.__name__ in repr(config)


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
    with pytest.raises(
        KeyError, match="mechanism as 'name', got 'transformer'; there are big_bird"
    ):
        build_attention({"name": "transformer"})


@pytest.mark.usefixtures("registry")
def test_unknown_fields_are_told_at_once():
    register_attention("own")(mechanism())
    with pytest.raises(TypeError) as refused:
        build_attention({"name": "own", "sizes": 3, "causal": True, "modulee": None})
    assert str(refused.value) == (
        "build_attention: expected fields of 'own', which are dropout, module, size, got 'sizes', "
        "'causal', 'modulee'; did you mean 'size', 'module'?; of a mapping that mechanisms share, "
        "keep dataclasses.fields(ATTENTION_REGISTRY['own'].config)"
    )


@pytest.mark.parametrize("config", [{}, {"dropout": 0.1}, {"name": None}])
def test_a_name_is_needed(config):
    with pytest.raises(KeyError, match="mechanism as 'name', got none; there are big_bird"):
        build_attention(config)


@pytest.mark.parametrize("config", ["local", 3, ["local"]])
def test_other_things_than_configurations_are_refused(config):
    with pytest.raises(TypeError, match=re.escape("a mapping such as {'name': 'local'}")):
        build_attention(config)


def test_a_dropout_that_is_missing_is_0():
    for config in ({"name": "nystrom", "num_heads": 2}, {"name": "random", "dropout": None}):
        assert build_attention(config).dropout == 0.0


def test_missing_arguments_are_told_at_once():
    config = ATTENTION_REGISTRY["lambda"].config("lambda", dropout=0.5)
    for given in (config, {"name": "lambda"}):
        with pytest.raises(TypeError, match="expected seq_len, dim_head for 'lambda', got none"):
            build_attention(given)


def test_base_is_abstract_and_checks_dropout():
    with pytest.raises(TypeError, match="abstract"):
        Attention()
    with pytest.raises(ValueError, match="expected dropout"):
        ScaledDotProduct(dropout=1.5)


def test_names_that_are_no_text_are_refused():
    with pytest.raises(KeyError, match="registered mechanism"):
        build_attention({"name": ["local"]})
