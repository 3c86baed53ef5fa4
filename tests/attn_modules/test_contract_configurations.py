"""What every mechanism promises of how it is made, kept and copied."""

import copy
import inspect
import pickle

import pytest
import torch

from attn_modules import ATTENTION_REGISTRY, build_attention
from mechanism_cases import CASES

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@every
def test_state_travels_to_another_of_its_kind(case):
    attention, other = case.build(drawn_from=1), case.build(drawn_from=2)
    operands = case.operands()
    other.load_state_dict(attention.state_dict())
    assert torch.equal(other(*operands), attention(*operands))


@every
def test_state_travels_through_a_file(case, tmp_path):
    attention, other = case.build(drawn_from=1), case.build(drawn_from=2)
    attention(*case.operands())
    torch.save(attention.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(*case.operands()), attention(*case.operands()))


@every
def test_one_seed_makes_one_mechanism(case):
    operands = case.operands()
    assert torch.equal(case.build(drawn_from=5)(*operands), case.build(drawn_from=5)(*operands))


@every
def test_the_configuration_says_the_same_as_the_mapping(case):
    config = ATTENTION_REGISTRY[case.name].config(**case.config())
    torch.manual_seed(0)
    attention = build_attention(config).eval()
    operands = case.operands()
    assert torch.equal(attention(*operands), case.build()(*operands))


@every
def test_the_constructor_says_the_same_as_the_mapping(case):
    torch.manual_seed(0)
    attention = case.constructor(**case.arguments).eval()
    operands = case.operands()
    assert torch.equal(attention(*operands), case.build()(*operands))


@every
def test_none_stands_for_the_default(case):
    parameters = inspect.signature(case.constructor).parameters
    absent = dict.fromkeys(set(parameters) - set(case.arguments))
    operands = case.operands()
    assert torch.equal(case.build(**absent)(*operands), case.build()(*operands))


@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_every_argument_is_a_field(name):
    constructor, config = ATTENTION_REGISTRY[name]
    parameters = inspect.signature(constructor).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    assert set(parameters) <= set(inspect.signature(config).parameters)


@pytest.mark.parametrize("name", sorted(ATTENTION_REGISTRY))
def test_an_unknown_field_is_refused_with_the_nearest(name):
    with pytest.raises(TypeError, match="got 'drop_out'; did you mean 'dropout'"):
        build_attention({"name": name, "drop_out": 0.1})


@pytest.mark.parametrize("dropout", [-0.1, 1.5, "a"])
@every
def test_dropout_is_a_probability(case, dropout):
    with pytest.raises(ValueError, match="expected dropout, a probability"):
        case.build(dropout=dropout)


@every
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda attention: pickle.loads(pickle.dumps(attention))],  # noqa: S301  ours
    ids=["deepcopy", "pickle"],
)
def test_copies_give_the_same(case, duplicate, used):
    attention, operands = case.build(), case.operands()
    if used:
        attention(*operands)
    other = duplicate(attention)
    assert other is not attention
    assert torch.equal(other(*operands), attention(*operands))


@every
def test_the_mechanism_prints_its_name(case):
    assert repr(case.build()).startswith(case.constructor.__name__)
