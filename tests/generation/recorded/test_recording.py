import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from varlit.generation.editing.known import KnownTokens
from varlit.generation.recorded.recorder import CudaRecorder
from varlit.generation.recorded.recording import GraphKey, Recording
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.drawing_copy import drawing_copy


class Once:
    """Runs what it is given, and replays nothing."""

    def record(self, run):
        drawn = run()
        return lambda: drawn


def on_a_gpu_that_is_not_there(network):
    """Give a network weights that know a CUDA device, shapes and no values."""
    weights = {
        name: torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
        for name, weight in network.state_dict().items()
    }
    network.load_state_dict(weights, assign=True)


@pytest.mark.parametrize("draw", ["exact", "sorted"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nothing_that_is_recorded_waits_for_a_value_on_the_gpu(sampler, draw, dtype):
    settings = SamplingSettings(cfg_scale=2.0, top_k=12, top_p=0.9, draw=draw)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_a_gpu_that_is_not_there(sampler.var)
        on_a_gpu_that_is_not_there(sampler.tokenizer)
        var = drawing_copy(sampler.var, dtype)
        # The warm-up has made this constant when a graph is recorded.
        var._levels = lambda device: torch.zeros(21, dtype=torch.long, device=device)
        key = GraphKey(4, settings, True, None)
        recording = Recording(Sampler(var, sampler.tokenizer), key, Once())
        known = KnownTokens(recording.tokens.clone(), recording.is_known.clone())
        drawn = recording.draw(recording.labels.clone(), recording.uniform.clone(), known)
        assert drawn.images.device.type == "cuda"
        assert drawn.images.shape == (4, 3, 8, 8)
        with pytest.raises(DataDependentOutputException):
            drawn.tokens.max().item()


def test_a_smaller_batch_is_filled_into_the_first_rows(sampler):
    settings = SamplingSettings(cfg_scale=0.0, top_k=0, top_p=0.0)
    recording = Recording(sampler, GraphKey(4, settings, False, None), Once())
    labels, uniform = torch.tensor([1, 2]), torch.rand(2, 21)
    known = KnownTokens(torch.full((2, 21), 5), torch.rand(2, 21) < 0.5)
    assert recording.draw(labels, uniform, known).tokens.shape == (2, 21)
    assert recording.labels.tolist() == [1, 2, 0, 0]
    assert torch.equal(recording.uniform[:2], uniform)
    assert torch.equal(recording.is_known[:2], known.is_known)
    assert not recording.is_known[2:].any()
    recording.draw(labels, uniform, None)
    assert not recording.is_known.any()


@pytest.mark.gpu
def test_a_recording_that_fails_leaves_the_stream_and_the_next_recording_whole():
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(4, device="cuda")
    before = torch.cuda.current_stream()
    with pytest.raises(Exception, match=r"captur"):
        recorder.record(lambda: x.sum().item() if torch.cuda.is_current_stream_capturing() else x)
    assert torch.cuda.current_stream() == before
    replay = recorder.record(lambda: x * 2)
    x.fill_(3)
    assert replay().tolist() == [6] * 4
