"""`verify_contract` passes what keeps the contract, and names the promise that is broken."""

import math

import pytest
import torch

from attn_continual.returnn import ContinualSelfAttention, RelPosCausalSelfAttention
from attn_continual.streams import map_state
from attn_continual.testing import verify_contract
from running_mean import RunningMean, State


def inputs(streams=3, steps=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(streams, steps, 3, dtype=dtype, generator=generator)


class StepsOff(RunningMean):
    def step(self, x, state, **options):
        out, state, valid = super().step(x, state, **options)
        return out * (1 + 1e-9), state, valid


class ChunksForgetTheStateOfLongerOnes(RunningMean):
    def steps(self, x, state, **options):
        before = state.position
        out, state, valid = super().steps(x, state, **options)
        if x.shape[1] > self.receptive_field:
            state = State(state.rows.roll(1, 1), before + x.shape[1])
        return out, state, valid


class OneOutputTooMany(RunningMean):
    @property
    def warm_up_steps(self):
        return self.receptive_field - 2


class WritesIntoTheGivenState(RunningMean):
    def steps(self, x, state, **options):
        out, new, valid = super().steps(x, state, **options)
        state.rows.copy_(new.rows)
        return out, new, valid


class OnePositionForAllStreams(RunningMean):
    def steps(self, x, state, **options):
        same = state.position.amax().expand_as(state.position)
        return super().steps(x, State(state.rows, same), **options)


class IgnoresActive(RunningMean):
    def steps(self, x, state, *, active=None, in_place=False):
        del active
        return super().steps(x, state, in_place=in_place)


class HeldStreamsAreValid(RunningMean):
    def steps(self, x, state, *, active=None, in_place=False):
        out, state, _ = super().steps(x, state, active=active, in_place=in_place)
        return out, state, torch.ones(x.shape[:2], dtype=torch.bool)


class HoldsNothingInPlace(RunningMean):
    def step(self, x, state, *, active=None, in_place=False):
        return super().step(x, state, active=None if in_place else active)


class LeaksWhatIsHeld(RunningMean):
    def steps(self, x, state, *, active=None, in_place=False):
        out, new, valid = super().steps(x, state, active=active, in_place=in_place)
        return out + 0 * x.sum(0), new, valid


class StateOfAllStreamsTogether(RunningMean):
    def initial_state(self, num_streams, **options):
        rows, _ = super().initial_state(num_streams, **options)
        return State(rows, torch.zeros(1, dtype=torch.int64))


class SnapshotsShareMemory(RunningMean):
    def get_state(self):
        state = super().get_state()
        return None if state is None else state._replace(tensors=self._state)

    def _keep(self, state, steps):
        if self._state is not None:
            state = map_state(torch.Tensor.copy_, self._state, state)
        super()._keep(state, steps)


class UpdatesAllTheSame(RunningMean):
    def forward_step(self, x, update_state=True):
        del update_state
        return super().forward_step(x)


class NewStatesAreKept(RunningMean):
    def forward_steps(self, x, pad_end=False, update_state=True):
        if self._state is None:
            self._keep(self.initial_state(x.shape[0]), 0)
        return super().forward_steps(x, pad_end, update_state)


class CannotBePickled(RunningMean):
    def __init__(self):
        super().__init__()
        self.secret = lambda: None


class SeesLaterInputs(RunningMean):
    def steps(self, x, state, **options):
        out, state, valid = super().steps(x, state, **options)
        return out + 1e-6 * x.mean(1, keepdim=True) * (x.shape[1] > 8), state, valid


class SeesOlderInputs(RunningMean):
    def initial_state(self, num_streams, **options):
        rows, position = super().initial_state(num_streams, **options)
        return (State(rows, position), rows[:, 0])

    def steps(self, x, state, *, active=None, in_place=False):
        del in_place
        out, new, valid = super().steps(x, state[0], active=active)
        sums = state[1][:, None] + x.cumsum(1)
        total = sums[:, -1] if x.shape[1] else state[1]
        if active is not None:
            total = torch.where(active[:, None], total, state[1])
        return out + sums, (new, total), valid


class OwnsADelayOfNobody(RunningMean):
    def __init__(self):
        super().__init__(delay=7)


class PaddingStays(RunningMean):
    def forward_steps(self, x, pad_end=False, update_state=True):
        if pad_end:
            x = torch.cat([x, x.new_zeros(x.shape[0], self.delay, x.shape[2])], 1)
        return super().forward_steps(x, update_state=update_state)


class TakesAnyNumberOfStreams(RunningMean):
    def _state_for(self, x, stream_axis):
        if self._state is None:
            return super()._state_for(x, stream_axis)
        return map_state(lambda t: t[: x.shape[stream_axis]], self._state)


class CutsGradients(RunningMean):
    def step(self, x, state, **options):
        return super().step(x, map_state(torch.detach, state), **options)


class ScalesGradients(RunningMean):
    def step(self, x, state, **options):
        out, state, valid = super().step(x, state, **options)
        return out.detach() + 2 * (out - out.detach()), state, valid


class AddsNothing(RunningMean):
    """Has a parameter whose gradient is 0 but for rounding."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def steps(self, x, state, **options):
        out, state, valid = super().steps(x, state, **options)
        return out + torch.softmax(x + self.shift.mean(), -1), state, valid


class KeepsHistory(RunningMean):
    def _keep(self, state, steps):
        self._state, self._steps = state, steps


BROKEN = {
    StepsOff: "forward_step 3 equals the whole",
    ChunksForgetTheStateOfLongerOnes: r"chunks of \[5, 4\] steps equal the whole",
    OneOutputTooMany: "step says that all outputs but the first warm_up_steps, 2, are valid",
    WritesIntoTheGivenState: "leaves a new state alone",
    OnePositionForAllStreams: "goes on among others as alone",
    IgnoresActive: "a stream that is not active keeps its state",
    HeldStreamsAreValid: "says that all outputs but the first warm_up_steps",
    HoldsNothingInPlace: "a stream that is not active keeps its state",
    LeaksWhatIsHeld: "stream 0, at a pace of its own, equals the whole",
    StateOfAllStreamsTogether: "the first axis of states is the stream",
    SnapshotsShareMemory: "a snapshot stays as it is",
    UpdatesAllTheSame: "update_state=False leaves a new module without state",
    NewStatesAreKept: "update_state=False leaves a new module without state",
    SeesLaterInputs: r"chunks of \[2, 2, 2, 2, 1\] steps equal the whole",
    SeesOlderInputs: "older than receptive_field",
    OwnsADelayOfNobody: "delay 7 is within the receptive field",
    PaddingStays: "pad_end leaves the state as it is",
    TakesAnyNumberOfStreams: "another number of streams than before is refused",
    CutsGradients: "the gradient of the input through steps is the whole's",
    ScalesGradients: "the gradient of the input through steps is the whole's",
    KeepsHistory: "steps do not go back into earlier ones",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("window", "delay"), [(1, 0), (2, 1), (4, 2)])
def test_what_keeps_the_contract_passes(dtype, window, delay):
    module = RunningMean(window=window, delay=delay, dtype=dtype)
    verify_contract(module, inputs(dtype=dtype))


class LastTwoTimeFirst(RunningMean):
    """The same output twice, [T, 2, N, width], for x [T, N, width]."""

    time_axis = 0
    output_stream_axis = 2

    def step(self, x, state, **options):
        out, state, valid = RunningMean.steps(self, x[:, None], state, **options)
        return out.transpose(0, 1).expand(2, -1, -1), state, valid[:, 0]

    def steps(self, x, state, **options):
        out, state, valid = super().steps(x.transpose(0, 1), state, **options)
        return out.transpose(0, 1)[:, None].expand(-1, 2, -1, -1), state, valid


def test_outputs_may_be_laid_out_in_another_way():
    verify_contract(LastTwoTimeFirst(), inputs().transpose(0, 1))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_promise_is_named(broken):
    with pytest.raises(
        AssertionError, match=f"^{broken.__name__} breaks a promise: .*{BROKEN[broken]}"
    ):
        verify_contract(broken(), inputs())


def test_gradients_of_rounding_are_no_difference():
    verify_contract(AddsNothing(), inputs())


class OneKeyAfterAnother(ContinualSelfAttention):
    """Sees one key at a time: its scores, as large as these are, have no gradient but rounding."""

    def __init__(self):
        torch.manual_seed(0)
        sizes = {"key_dim_total": 64, "value_dim_total": 64, "num_heads": 2}
        super().__init__(RelPosCausalSelfAttention(64, 64, **sizes, window=1))
        for weight in self.parameters():
            torch.nn.init.normal_(weight, std=2)


class OneKeyWithAWrongGradient(OneKeyAfterAnother):
    def steps(self, x, state, **options):
        out, state, valid = super().steps(x, state, **options)
        scale = 1.01 if x.shape[1] == 1 else 1
        return out.detach() + scale * (out - out.detach()), state, valid


def test_gradients_whose_scores_cancel_differ_by_rounding_alone():
    x = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(2))
    verify_contract(OneKeyAfterAnother(), x)
    with pytest.raises(AssertionError, match="the gradient of the input through steps is"):
        verify_contract(OneKeyWithAWrongGradient(), x)


def test_what_cannot_be_pickled_is_found():
    with pytest.raises(AttributeError, match="pickle"):
        verify_contract(CannotBePickled(), inputs())


def test_gradients_can_be_left_out():
    verify_contract(CutsGradients(), inputs(), gradients=False)
    verify_contract(KeepsHistory(), inputs(), gradients=False)


def test_partitions_and_the_tolerance_are_the_callers():
    module = ChunksForgetTheStateOfLongerOnes()
    with pytest.raises(AssertionError, match=r"chunks of \[6, 3\]"):
        verify_contract(module, inputs(), partitions=[[2, 7], [6, 3]])
    verify_contract(StepsOff(), inputs(), tolerance=1e-8)


def test_nan_is_no_agreement():
    class GivesNaN(RunningMean):
        def step(self, x, state, **options):
            out, state, valid = super().step(x, state, **options)
            return out * math.nan, state, valid

    with pytest.raises(AssertionError, match="forward_step 3 equals the whole"):
        verify_contract(GivesNaN(), inputs())


@pytest.mark.parametrize("shape", [(1, 9), (3, 6)])
def test_too_small_inputs_are_refused(shape):
    with pytest.raises(ValueError, match="expected x of 2 streams and 7 steps or more, got"):
        verify_contract(RunningMean(), inputs(*shape))


def test_the_module_is_left_as_it_is():
    module = RunningMean().train()
    module.forward_steps(inputs()[:, :5])
    state = module.get_state()
    verify_contract(module, inputs())
    assert module.training
    assert module.get_state().steps == state.steps
    assert torch.equal(module.get_state().tensors.rows, state.tensors.rows)
    assert module.weight.grad is None
