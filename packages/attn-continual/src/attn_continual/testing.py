"""`verify_contract`: what every layer of this package, and of its users, can be held to."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from attn_continual._trial import Claim, Trial, joined
from attn_continual.streams import (
    reset_streams,
    select_streams,
    snapshot,
    stack_streams,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attn_continual.continual_module import ContinualModule


def verify_contract(
    module: ContinualModule,
    x: Tensor,
    *,
    partitions: Sequence[Sequence[int]] | None = None,
    tolerance: float | None = None,
    gradients: bool = True,
) -> None:
    """Check that whole sequences, chunks and single steps agree, and what states promise.

    Every partition of a sequence into chunks, also empty ones, has the outputs of the whole, and
    so has the functional form, which leaves the state it is given alone. Streams of different
    positions, held, reset, chosen and stacked, go on as each would alone. Snapshots stay good;
    `update_state=False` leaves no trace; copies and pickles go on. Outputs depend on no inputs but
    the last `receptive_field` ones. Gradients of steps are those of the whole.

    x: two streams or more, as `forward_steps` takes them, of `warm_up_steps` + 4 steps or more;
        with more than `receptive_field`, older inputs are seen not to matter.
    partitions: the lengths of chunks to try; default: single steps, and chunks shorter and longer
        than the receptive field.
    tolerance: the largest difference, in sizes of the largest output; default 2e-6 for float32,
        1e-12 for float64, 2e-2 for other dtypes. Gradients may differ ten times as much, and by
        what the last digits of the inputs change in them.
    gradients: whether to check them.
    The module is left as it is: a copy in evaluation mode is tried.
    Raises: AssertionError that says which promise is broken; ValueError if `x` is too small.

    >>> from attn_continual import SingleOutputMultiheadAttention
    >>> verify_contract(SingleOutputMultiheadAttention(8, 2, sequence_len=4), torch.randn(2, 9, 8))
    """
    copied = copy.deepcopy(module).eval()
    copied.clean_state()
    if tolerance is None:
        tolerance = _TOLERANCE.get(x.dtype, 2e-2)
    trial = Trial(copied, x.detach().movedim((copied.stream_axis, copied.time_axis), (0, 1)))
    claim = Claim(type(module).__name__, tolerance)
    least = copied.warm_up_steps + 4
    if trial.num_streams < 2 or trial.num_steps < least:
        raise ValueError(
            f"verify_contract: expected x of 2 streams and {least} steps or more, got "
            f"{trial.num_streams} and {trial.num_steps}"
        )
    with torch.no_grad():
        _check_partitions(trial, claim, partitions or _default_partitions(trial))
        for check in _CHECKS:
            copied.clean_state()
            check(trial, claim)
    if gradients:
        with torch.enable_grad():
            _check_gradients(trial, Claim(claim.name, 10 * tolerance))
            if module.detaches_state:
                _check_cut_history(trial, claim)


_TOLERANCE: Final = {torch.float32: 2e-6, torch.float64: 1e-12}

_ROUNDINGS: Final = 8
"""So many times what the inputs' last digits change in gradients, these may differ besides: where
all cancels, as in the softmax of one key, rounding is what is left, and has no size of its own."""


def _default_partitions(trial: Trial) -> list[list[int]]:
    steps = trial.num_steps
    lengths = {2, 3, steps // 2, trial.module.warm_up_steps, trial.module.warm_up_steps + 2}
    even = [
        [length] * (steps // length) + [steps % length] * (steps % length > 0)
        for length in sorted(lengths)
        if 0 < length < steps
    ]
    return [*even, [0, steps - 1, 0, 1], [1, 0, steps - 1]]


def _check_partitions(trial: Trial, claim: Claim, partitions: Sequence[Sequence[int]]) -> None:
    """Hold the outputs of any partition into chunks to those of the whole."""
    expected = trial.num_steps - trial.module.warm_up_steps
    out = trial.forward_steps(trial.x)
    count = 0 if out is None else out.shape[1]
    claim.holds(f"{trial.num_steps} steps have {expected} outputs, got {count}", count == expected)
    for lengths in partitions:
        trial.module.clean_state()
        outs = [trial.forward_steps(chunk) for chunk in trial.x.split(list(lengths), 1)]
        claim.close(f"chunks of {list(lengths)} steps equal the whole", joined(outs), out)
    trial.module.clean_state()
    for t, row in enumerate(trial.x.unbind(1)):
        got = trial.forward_step(row)
        first = t - trial.module.warm_up_steps
        now = None if first < 0 or out is None else out[:, first : first + 1]
        claim.close(f"forward_step {t} equals the whole", got, now)


def _check_functional_form(trial: Trial, claim: Claim) -> None:
    """Hold `step` and `steps` to the whole, and to leaving the given state alone."""
    whole = trial.whole()
    state = trial.initial_state(trial.num_streams)
    first_axes = {tensor.shape[0] for tensor in tensors_of(state)}
    claim.holds("the first axis of states is the stream", first_axes == {trial.num_streams})
    valid = torch.arange(trial.num_steps, device=whole.device) >= trial.module.warm_up_steps
    halves = trial.x.split(trial.num_steps // 2 + 1, 1)
    for name, run in (("step", trial.step_by_step), ("steps", trial.chunk)):
        first = run(halves[0], state)
        claim.same(f"{name} leaves a new state alone", state, trial.initial_state(len(trial.x)))
        before = snapshot(first.state)
        second = run(halves[1], first.state)
        claim.same(f"{name} leaves the given state alone", first.state, before)
        outs, valids = (torch.cat(pair, 1) for pair in zip(first[::2], second[::2], strict=True))
        claim.holds(
            f"{name} says that all outputs but the first warm_up_steps, "
            f"{trial.module.warm_up_steps}, are valid",
            torch.equal(valids, valid.expand_as(valids)),
        )
        claim.close(f"{name} equals the whole", outs[:, valid], whole)
    overwritten = trial.step_by_step(trial.x, state, in_place=True)
    claim.close("step in place equals the whole", overwritten.outs[:, valid], whole)


def _check_streams_at_different_positions(trial: Trial, claim: Claim) -> None:
    """Hold streams that began at different times, stacked, to what each does alone."""
    together = max(trial.num_steps // 2, trial.module.warm_up_steps + 1)
    latest = trial.num_steps - together
    starts = [latest * n // (trial.num_streams - 1) for n in range(trial.num_streams)]
    states = [
        trial.step_by_step(trial.x[n : n + 1, :start], trial.initial_state(1)).state
        if start
        else trial.initial_state(1)
        for n, start in enumerate(starts)
    ]
    rows = torch.stack([trial.x[n, start : start + together] for n, start in enumerate(starts)])
    joined = stack_streams(states)
    for run in (trial.step_by_step, trial.chunk):
        outs, _, valid = run(rows, joined)
        for n, state in enumerate(states):
            alone = run(rows[n : n + 1], state)
            promise = f"stream {n}, {starts[n]} steps old, goes on among others as alone"
            claim.holds(f"{promise}; which are valid", torch.equal(valid[n], alone.valid[0]))
            claim.close(promise, outs[n][valid[n]], alone.outs[0][valid[n]])
            chosen = select_streams(joined, [n])
            claim.same("select_streams returns what was stacked", chosen, state)


def _check_held_streams(trial: Trial, claim: Claim) -> None:
    """Hold streams at paces of their own to the whole: the others keep their state."""
    whole = trial.whole()
    for in_place in (False, True):
        outs, state = _outputs_at_own_paces(trial, claim, in_place=in_place)
        for n, got in enumerate(outs):
            promise = f"stream {n}, at a pace of its own, equals the whole"
            claim.close(promise, got, whole[n, : len(got)])
    none = torch.zeros(trial.num_streams, dtype=torch.bool, device=whole.device)
    run = trial.chunk(trial.x, state, none)
    claim.same("a chunk of streams that are not active keeps the state", run.state, state)
    claim.holds("a chunk of streams that are not active is not valid", not run.valid.any())


def _outputs_at_own_paces(
    trial: Trial, claim: Claim, *, in_place: bool
) -> tuple[list[Tensor], Any]:
    """Let stream n pause at every (n + 2)th step; return each one's outputs, and the state."""
    streams = torch.arange(trial.num_streams, device=trial.x.device)
    state, seen = trial.initial_state(trial.num_streams), torch.zeros_like(streams)
    outs: list[list[Tensor]] = [[] for _ in streams]
    for t in range(2 * trial.num_steps):
        active = (t % (streams + 2) != 0) & (seen < trial.num_steps)
        row = trial.x[streams, seen.clamp(max=trial.num_steps - 1)]
        row[~active] = torch.nan if row.is_floating_point() else 0
        before = snapshot(state)
        out, state, valid = trial.module.step(row, state, active=active, in_place=in_place)
        states = (select_streams(x, ~active) for x in (state, before))
        claim.same("a stream that is not active keeps its state", *states)
        claim.holds(
            "outputs of streams that are not active are not valid", not valid[~active].any()
        )
        for n in torch.nonzero(valid).flatten().tolist():
            outs[n].append(trial.from_step(out)[n, 0])
        seen += active
    counts = (seen - trial.module.warm_up_steps).clamp(min=0)
    claim.holds("active streams have outputs", [len(found) for found in outs] == counts.tolist())
    return [torch.stack(found) for found in outs], state


def _check_reset_streams(trial: Trial, claim: Claim) -> None:
    """Hold streams that are reset to beginning anew, and the others to going on."""
    initial = trial.initial_state(trial.num_streams)
    half = trial.num_steps - trial.num_steps // 2
    state = trial.step_by_step(trial.x[:, :half], initial).state
    mask = torch.arange(trial.num_streams, device=trial.x.device) % 2 == 0
    rest = trial.x[:, half:]
    anew, on = trial.step_by_step(rest, initial), trial.step_by_step(rest, state)
    got = trial.step_by_step(rest, reset_streams(state, initial, mask))
    for n, expected in enumerate(anew if was_reset else on for was_reset in mask.tolist()):
        promise = "streams that are reset begin anew, and the others go on"
        claim.holds(f"{promise}; which are valid", torch.equal(got.valid[n], expected.valid[n]))
        valid = expected.valid[n]
        claim.close(promise, got.outs[n][valid], expected.outs[n][valid])


def _check_snapshots(trial: Trial, claim: Claim) -> None:
    """Replay a snapshot twice; hold `update_state=False` to leaving no trace."""
    module, half = trial.module, trial.module.warm_up_steps + 1
    whole, rest = trial.whole(), trial.x[:, half:]
    module.forward_step(trial.x[:, 0], update_state=False)
    trial.forward_steps(trial.x, update_state=False)
    claim.holds("update_state=False leaves a new module without state", module.get_state() is None)
    trial.forward_steps(trial.x[:, :half])
    state = module.get_state()
    claim.holds("get_state returns a state after a step", state is not None)
    assert state is not None  # noqa: S101  for the type checker
    kept = snapshot(state.tensors)
    for run in (trial.forward_single_steps, trial.forward_steps, trial.forward_single_steps):
        claim.close("a snapshot can be replayed", run(rest), whole[:, 1:])
        claim.same("a snapshot stays as it is", state.tensors, kept)
        module.set_state(state)
    module.forward_step(rest[:, 0], update_state=False)
    trial.forward_steps(rest, update_state=False)
    after = module.get_state()
    assert after is not None  # noqa: S101
    claim.same("update_state=False leaves the state as it is", after.tensors, kept)
    module.clean_state()
    claim.holds("clean_state leaves no state", module.get_state() is None)
    claim.close("clean_state begins anew", trial.forward_steps(trial.x), whole)
    module.set_state(None)
    claim.close("set_state(None) begins anew", trial.forward_steps(trial.x), whole)


def _check_copies(trial: Trial, claim: Claim) -> None:
    """Hold copies and pickles, made within a stream, to going on from there."""
    module, half = trial.module, trial.module.warm_up_steps + 1
    whole, rest = trial.whole(), trial.x[:, half:]
    trial.forward_steps(trial.x[:, :half])
    mode = module.call_mode
    module.call_mode = "forward_step"
    pickled = pickle.dumps(module)
    for name, other in (
        ("a copy", copy.deepcopy(module)),
        ("a pickled module", pickle.loads(pickled)),  # noqa: S301  our own
        ("the module itself, after it was copied,", module),
    ):
        outs = [trial.from_step(other(row)) for row in rest.unbind(1)]
        claim.close(f"{name} goes on", joined(outs), whole[:, 1:])
    module.call_mode = mode


def _check_receptive_field(trial: Trial, claim: Claim) -> None:
    """Hold outputs to depending on the last `receptive_field` inputs.

    That they depend on nothing later follows from single steps, which had not seen it.
    """
    whole = trial.whole()
    for changed in range(0, trial.num_steps - trial.module.receptive_field, 2):
        x = trial.x.clone()
        x[:, changed] = x[:, changed].flip(0) * 3 + 1
        later = changed + trial.module.receptive_field - trial.module.warm_up_steps
        claim.close(
            "outputs do not depend on inputs older than receptive_field",
            Trial(trial.module, x).whole()[:, later:],
            whole[:, later:],
        )


def _check_delay(trial: Trial, claim: Claim) -> None:
    """Hold `pad_end` to adding `delay` outputs, and to leaving the state as it is."""
    whole, delay, half = trial.whole(), trial.module.delay, trial.module.warm_up_steps + 1
    claim.holds(
        f"delay {delay} is within the receptive field", 0 <= delay < trial.module.receptive_field
    )
    padded = trial.forward_steps(trial.x[:, :half], pad_end=True)
    count = None if padded is None else padded.shape[1]
    claim.holds(f"pad_end adds {delay} outputs to 1, got {count}", count == 1 + delay)
    claim.close(
        "pad_end leaves the state as it is", trial.forward_steps(trial.x[:, half:]), whole[:, 1:]
    )


def _check_number_of_streams(trial: Trial, claim: Claim) -> None:
    """See that another number of streams than before is refused."""
    trial.module.forward_step(trial.x[:, 0])
    for run in (
        lambda: trial.module.forward_step(trial.x[1:, 0]),
        lambda: trial.forward_steps(trial.x[1:]),
    ):
        try:
            run()
        except ValueError:
            continue
        claim.holds("another number of streams than before is refused", kept=False)


def _check_gradients(trial: Trial, claim: Claim) -> None:
    """Hold gradients of steps that keep their history to those of the whole."""
    module = trial.module
    detaches, module.detaches_state = module.detaches_state, False

    def in_halves(x: Tensor) -> Tensor | None:
        return joined([trial.forward_steps(half) for half in x.chunk(2, 1)])

    expected, unsure = _gradients_and_rounding(trial, trial.forward_steps)
    # Some are 0 but for rounding, such as that of a bias of keys: none is measured by itself.
    size = max(found.abs().max().item() for found in expected.values())
    for name, run in (("steps", trial.forward_single_steps), ("chunks", in_halves)):
        gradients, rounding = _gradients_and_rounding(trial, run)
        for of, found in gradients.items():
            promise = f"the gradient of {of} through {name} is the whole's"
            claim.close(promise, found, expected[of], size, _ROUNDINGS * (unsure + rounding))
    module.detaches_state = detaches


def _gradients_and_rounding(
    trial: Trial, run: Callable[[Tensor], Tensor | None]
) -> tuple[dict[str, Tensor], float]:
    """Return the gradients by name, and the most that the last digit of the inputs changes."""
    parameters = {name: p for name, p in trial.module.named_parameters() if p.requires_grad}

    def gradients(x: Tensor) -> dict[str, Tensor]:
        trial.module.clean_state()
        x = x.clone().requires_grad_()
        out = run(x)
        assert out is not None  # noqa: S101
        weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device)
        loss = (out * weights.view_as(out)).sum()
        found = torch.autograd.grad(loss, [x, *parameters.values()], materialize_grads=True)
        return dict(zip(["the input", *parameters], found, strict=True))

    here, nearby = gradients(trial.x), gradients(_with_other_last_digits(trial.x))
    changes = [(nearby[of] - found).abs().max().item() for of, found in here.items()]
    return here, max(changes)


def _with_other_last_digits(x: Tensor) -> Tensor:
    """Make every other number larger by its last digit, and the rest smaller."""
    signs = 1 - 2 * (torch.arange(x.numel(), device=x.device) % 2).to(x.dtype)
    return x * (1 + torch.finfo(x.dtype).eps * signs.view(x.shape))


def _check_cut_history(trial: Trial, claim: Claim) -> None:
    """Go back through one step after the other: none may reach the graph of an earlier one."""
    x = trial.x.clone().requires_grad_()
    trial.module.clean_state()
    try:
        for row in x.unbind(1):
            out = trial.module.forward_step(row)
            if out is not None:
                torch.autograd.grad(out.sum(), x)
    except RuntimeError as error:
        raise claim.broken("steps do not go back into earlier ones") from error


_CHECKS: Final[Sequence[Callable[[Trial, Claim], None]]] = (
    _check_functional_form,
    _check_streams_at_different_positions,
    _check_held_streams,
    _check_reset_streams,
    _check_snapshots,
    _check_copies,
    _check_receptive_field,
    _check_delay,
    _check_number_of_streams,
)
