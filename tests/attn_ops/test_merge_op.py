"""The merge operators under opcheck, torch.compile, torch.export and torch.func, and refusals."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attn_ops.fmha.merge import merge_attentions

OPS = torch.ops.attn_ops


def make_chunks(chunks=3, queries=5, **options):
    options = {"dtype": torch.float64, **options}
    generator = torch.Generator().manual_seed(5)
    outs = [torch.randn(2, queries, 3, 8, generator=generator, **options) for _ in range(chunks)]
    lses = [torch.randn(2, 3, queries, generator=generator, **options) for _ in range(chunks)]
    return outs, lses


def stacked(chunks):
    return [torch.stack(chunks).detach().requires_grad_(chunks[0].requires_grad)]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_merge(requires_grad):
    outs, lses = make_chunks(requires_grad=requires_grad)
    torch.library.opcheck(OPS.merge.default, (outs, lses))
    torch.library.opcheck(OPS.merge.default, (stacked(outs), stacked(lses)))


def test_opcheck_without_gradient():
    outs, lses = make_chunks(dtype=torch.float32)
    torch.library.opcheck(OPS._merge.default, (outs, lses), {"output_dtype": torch.bfloat16})


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck_backward(needs):
    outs, lses = make_chunks()
    gradients = torch.randn_like(outs[0]), torch.randn_like(lses[0])
    options = dict(zip(("need_outs", "need_lses"), needs, strict=True))
    for chunks in [(outs, lses), (stacked(outs), stacked(lses))]:
        torch.library.opcheck(OPS._merge_backward.default, (*chunks, *gradients), options)


@pytest.fixture
def _forget_compiled_code():
    torch.compiler.reset()


@pytest.mark.usefixtures("_forget_compiled_code")
@pytest.mark.parametrize("is_stacked", [False, True])
def test_compile_of_the_whole_graph(is_stacked):
    def merged(outs, lses):
        return merge_attentions(outs, lses, output_dtype=torch.float64)

    compiled = torch.compile(merged, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for queries in (5, 9, 2):
            outs, lses = make_chunks(queries=queries, requires_grad=True)
            if is_stacked:
                outs, lses = stacked(outs), stacked(lses)
            split = (outs[0], lses[0]) if is_stacked else (outs, lses)
            found, expected = compiled(*split), merged(*split)
            assert_close(found, expected)
            gradients = [
                torch.autograd.grad(out.square().sum() + lse.square().sum(), [*outs, *lses])
                for out, lse in (found, expected)
            ]
            assert_close(*gradients)


def test_export():
    class Merged(nn.Module):
        def forward(self, outs, lses):
            return merge_attentions(outs, lses)

    split = make_chunks()
    with torch.no_grad():
        program = torch.export.export(Merged(), split)
    assert_close(program.module()(*split), Merged()(*split))


def test_grad_transform():
    outs, lses = (torch.stack(chunks) for chunks in make_chunks())

    def loss(outs, lses):
        out, lse = merge_attentions(outs, lses)
        return out.square().sum() + lse.square().sum()

    found = torch.func.grad(loss, argnums=(0, 1))(outs, lses)
    leaves = outs.requires_grad_(), lses.requires_grad_()
    assert_close(found, torch.autograd.grad(loss(*leaves), leaves))


@pytest.mark.parametrize("is_stacked", [False, True])
def test_vmap_of_results_and_gradients(is_stacked):
    def merged(outs, lses):
        return merge_attentions(*((outs, lses) if is_stacked else (outs.unbind(), lses.unbind())))

    def gradients(outs, lses):
        return torch.func.grad(lambda *split: merged(*split)[0].square().sum(), (0, 1))(outs, lses)

    generator = torch.Generator().manual_seed(7)
    outs = torch.randn(4, 3, 2, 5, 3, 8, dtype=torch.float64, generator=generator)
    lses = torch.randn(3, 2, 3, 5, dtype=torch.float64, generator=generator)
    for function in (merged, gradients):
        found = torch.vmap(function, in_dims=(0, None))(outs, lses)
        for place, sample in enumerate(outs):
            assert_close(tuple(x[place] for x in found), function(sample, lses))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.func uses it
def test_second_derivative_and_forward_mode_are_refused():
    outs, lses = make_chunks(requires_grad=True)
    out, _ = merge_attentions(outs, lses)
    (gradient,) = torch.autograd.grad(out.square().sum(), outs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="at most one derivative"):
        torch.autograd.grad(gradient.sum(), outs[0])
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: merge_attentions([x], [lses[0]])[0], (outs[0],), (outs[0],))


def test_operator_refuses_what_the_core_refuses():
    outs, lses = make_chunks()
    with pytest.raises(RuntimeError, match="as many chunk_lses"):
        OPS.merge(outs, lses[:2])
    with pytest.raises(RuntimeError, match="at least one chunk"):
        OPS.merge([torch.zeros(0, 2, 5, 3, 8)], [torch.zeros(0, 2, 3, 5)])
    with pytest.raises(RuntimeError, match=r"chunk_outs \[B, M, H, Kv\]"):
        OPS.merge([outs[0][0], outs[1][0]], lses[:2])
    with pytest.raises(RuntimeError, match="in chunk 1, expected chunk_lse's extent H"):
        OPS.merge(outs, [lses[0], lses[1][:, :2], lses[2]])
    with pytest.raises(RuntimeError, match="lse's dtype"):
        OPS.merge(outs, [lse.float() for lse in lses])
