"""What single-output attention refuses, and in which words."""

import pytest
import torch
from torch.testing import assert_close

from attn_continual import SingleOutputMultiheadAttention

L, E = 4, 8


def make(**options):
    return SingleOutputMultiheadAttention(E, 2, **{"sequence_len": L, **options})


@pytest.mark.parametrize("length", [None, 0, -3, 2.5, "3"])
def test_sequence_len_is_needed(length):
    with pytest.raises(ValueError, match="expected sequence_len, the steps of the window, got"):
        make(sequence_len=length)


@pytest.mark.parametrize("heads", [3, 0, -2])
def test_heads_share_the_features(heads):
    with pytest.raises(ValueError, match=f"a multiple of num_heads, got embed_dim=8 and .*{heads}"):
        SingleOutputMultiheadAttention(E, heads, sequence_len=L)


@pytest.mark.parametrize("dropout", [1.5, -0.1])
def test_dropout_is_a_probability(dropout):
    with pytest.raises(ValueError, match=rf"probability in \[0, 1\], got {dropout}"):
        make(dropout=dropout)


@pytest.mark.parametrize("query_index", [L, L + 3, -L - 1, 1.5, None])
def test_query_index_lies_within_the_window(query_index):
    with pytest.raises(ValueError, match=r"query_index, an int in \[-4, 4\), got"):
        make(query_index=query_index)


def test_features_second_need_streams_first():
    with pytest.raises(ValueError, match="expected batch_first with embed_dim_second"):
        make(batch_first=False, embed_dim_second=True)


def test_sequences_have_three_axes_and_steps_two():
    layer = make()
    with pytest.raises(ValueError, match=r"expected 3 axes.*got \[5, 8\]"):
        layer(torch.zeros(5, E))
    with pytest.raises(ValueError, match="expected 3 axes"):
        layer.forward_steps(torch.zeros(5, E))
    with pytest.raises(ValueError, match=r"expected 2 axes.*forward_steps takes sequences"):
        layer.forward_step(torch.zeros(2, 1, E))


def test_features_are_as_many_as_the_weights_take():
    layer = make(kdim=5, vdim=6)
    query, key, value = (torch.zeros(2, width) for width in (E, 5, 6))
    assert layer.forward_step(query, key, value) is None
    with pytest.raises(ValueError, match=r"key: expected 5 features, got \[2, 1, 8\]"):
        layer.forward_step(query)
    with pytest.raises(ValueError, match=r"value: expected 6 features.*value to key"):
        layer.forward_step(query, key)
    with pytest.raises(ValueError, match="query: expected 8 features"):
        make().forward_step(torch.zeros(2, 7))


@pytest.mark.parametrize("method", ["forward_step", "forward_steps"])
def test_the_number_of_streams_stays(method):
    layer = make()
    shape = (3, E) if method == "forward_step" else (3, 2, E)
    getattr(layer, method)(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected 3 streams as before, got 1; call clean_state"):
        getattr(layer, method)(torch.zeros(1, *shape[1:]))


@pytest.mark.parametrize("method", ["step", "steps"])
def test_inputs_of_one_stream_are_not_spread_over_others(method):
    layer = make()
    x = torch.zeros(1, E) if method == "step" else torch.zeros(1, 2, E)
    with pytest.raises(ValueError, match="expected query of 3 streams, as the state has, got 1"):
        getattr(layer, method)(x, layer.initial_state(3))


@pytest.mark.parametrize("method", ["forward_step", "forward_steps"])
def test_masks_are_of_the_window_and_padding_is_bool(method):
    layer = make()
    x = torch.zeros(2, E) if method == "forward_step" else torch.zeros(2, 3, E)
    run = getattr(layer, method)
    with pytest.raises(ValueError, match=r"attn_mask: expected \[4, 4\].*got .* \[3, 4\]"):
        run(x, attn_mask=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="attn_mask: expected"):
        run(x, attn_mask=torch.zeros(4))
    with pytest.raises(ValueError, match="key_padding_mask: expected a bool tensor"):
        run(x, key_padding_mask=torch.zeros(x.shape[:-1]))


@pytest.mark.parametrize("query_index", [-1, -2])
@pytest.mark.parametrize("records", [False, True])
def test_keys_values_and_padding_are_of_every_stream_and_step(query_index, records):
    layer = make(query_index=query_index)
    x, sequence = torch.ones(3, E), torch.ones(3, 2, E)
    layer.forward_step(x)
    before = layer.get_state()
    refused = [
        lambda: layer.forward_step(x, x, x[:1]),
        lambda: layer.forward_step(x, x[:2]),
        lambda: layer.forward_step(x, key_padding_mask=torch.zeros(1, dtype=torch.bool)),
        lambda: layer.forward_step(x, key_padding_mask=torch.zeros(3, 1, dtype=torch.bool)),
        lambda: layer.forward_step(x, attn_mask=torch.zeros(L, L, dtype=torch.int64)),
        lambda: layer.forward_steps(sequence, sequence.repeat(1, 2, 1)),
        lambda: layer.forward_steps(sequence, sequence, sequence[:, :1]),
        lambda: layer.forward_steps(sequence, key_padding_mask=torch.zeros(3, 3) > 0),
        lambda: layer.forward_steps(sequence, key_padding_mask=torch.zeros(3) > 0),
    ]
    with torch.set_grad_enabled(records):
        for call in refused:
            with pytest.raises(ValueError, match=r"expected .* got"):
                call()
            assert_close(layer.get_state(), before, rtol=0, atol=0)


def test_forward_names_what_does_not_fit():
    x = torch.ones(3, 5, E)
    for message, arguments in {
        "query: expected 8 features": {"query": torch.ones(3, 5, 7)},
        "query: expected torch.float32": {"query": x.double()},
        "expected keys and values of 3 streams": {"query": x, "key": x[:2]},
        r"attn_mask: expected \[5, 5\]": {"query": x, "attn_mask": torch.zeros(4, 4)},
    }.items():
        with pytest.raises(ValueError, match=message):
            make()(**arguments)


def test_a_mask_of_another_number_of_streams():
    layer = make()
    with pytest.raises(ValueError, match="attn_mask"):
        layer.forward_step(torch.zeros(2, E), attn_mask=torch.zeros(3 * 2, L, L))
    with pytest.raises(ValueError, match="attn_mask"):
        layer.forward_step(torch.zeros(2, E), attn_mask=torch.zeros(3, L, L))


def test_unknown_arguments_are_not_swallowed():
    layer = make()
    with pytest.raises(TypeError):
        layer.forward_step(torch.zeros(2, E), need_weights=False)


def test_a_causal_hint_needs_its_mask():
    with pytest.raises(ValueError, match="is_causal: expected an attn_mask"):
        make()(torch.zeros(2, 3, E), is_causal=True)


def test_forward_of_fewer_steps_than_the_query_is_old():
    with pytest.raises(ValueError, match="single_output_forward=False"):
        make(query_index=-3)(torch.zeros(2, 2, E))
