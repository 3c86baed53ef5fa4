"""What calling a module does, by its own mode and in contexts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from attn_continual import SingleOutputMultiheadAttention, call_mode
from attn_continual.call_mode import current_call_mode

MODES = ["forward", "forward_steps", "forward_step"]


def test_contexts_nest_and_end_where_they_began():
    assert current_call_mode("forward_steps") == "forward_steps"
    with call_mode("forward_step"):
        assert current_call_mode("forward") == "forward_step"
        with call_mode("forward"):
            assert current_call_mode("forward_steps") == "forward"
        assert current_call_mode("forward") == "forward_step"
        with pytest.raises(KeyError), call_mode("forward_steps"):
            raise KeyError
        assert current_call_mode("forward") == "forward_step"
    assert current_call_mode("forward") == "forward"


def test_a_thread_has_contexts_of_its_own():
    meet = threading.Barrier(len(MODES))

    def mode_within(mode):
        with call_mode(mode):
            meet.wait(timeout=10)
            return current_call_mode("forward")

    with call_mode("forward_steps"), ThreadPoolExecutor(len(MODES)) as pool:
        assert list(pool.map(mode_within, MODES)) == MODES
        assert pool.submit(current_call_mode, "forward").result() == "forward"
        assert current_call_mode("forward") == "forward_steps"


@pytest.mark.parametrize("mode", [2, "step", None])
def test_an_unknown_mode_is_refused(mode):
    module = SingleOutputMultiheadAttention(4, 1, sequence_len=2)
    with pytest.raises(ValueError, match="expected one of forward, forward_steps, forward_step"):
        module.call_mode = mode
    with pytest.raises(ValueError, match="call_mode: expected one of"), call_mode(mode):
        pass
    assert module.call_mode == "forward"


def test_calling_a_module_runs_the_method_of_the_mode():
    module = SingleOutputMultiheadAttention(4, 1, sequence_len=2).eval()
    x = torch.randn(3, 5, 4)
    whole, _ = module(x)
    module.call_mode = "forward_steps"
    steps = module(x)
    assert steps.shape == (3, 4, 4)
    module.clean_state()
    with call_mode("forward_step"):
        assert module(x[:, 0]) is None
        torch.testing.assert_close(module(x[:, 1]), steps[:, 0])
    with call_mode("forward"):
        assert torch.equal(module(x)[0], whole)
    assert module(x, update_state=False).shape == (3, 5, 4)


def test_hooks_see_whole_sequences():
    module = SingleOutputMultiheadAttention(4, 1, sequence_len=2)
    seen = []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module(torch.randn(3, 5, 4))
    assert seen == ["forward"]


def test_a_compiled_module_has_its_own_mode():
    module = SingleOutputMultiheadAttention(4, 1, sequence_len=2).eval()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = torch.randn(3, 5, 4)
    with call_mode("forward_step"):
        torch.testing.assert_close(compiled(x)[0], module.forward(x)[0])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 9, [2, 3, 0, 4], [9]])
def test_modules_in_a_row_wait_for_each_other(chunks):
    torch.manual_seed(0)
    layers = [
        SingleOutputMultiheadAttention(4, 2, sequence_len=length).eval() for length in (3, 2, 4)
    ]
    x = torch.randn(2, 9, 4)
    expected = x
    for layer in layers:
        expected = layer.forward_steps(expected)
        layer.clean_state()
    with call_mode("forward_steps"):
        outs = [torch.nn.Sequential(*layers)(chunk) for chunk in x.split(chunks, 1)]
    torch.testing.assert_close(torch.cat([y for y in outs if y is not None], 1), expected)
