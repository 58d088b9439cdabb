import torch

from varlit.data.tokens.rounding import describe_encoder, fixed_rounding


def test_threads_and_algorithms_are_fixed_and_given_back() -> None:
    cudnn, threads = torch.backends.cudnn, torch.get_num_threads()
    before = cudnn.deterministic, cudnn.benchmark
    with fixed_rounding(threads + 1):
        assert torch.get_num_threads() == threads + 1
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    assert torch.get_num_threads() == threads
    assert (cudnn.deterministic, cudnn.benchmark) == before


def test_what_rounding_depends_on_is_plain_data() -> None:
    facts = describe_encoder(torch.device("cpu"), 3)
    assert facts["threads"] == 3
    assert facts["tf32"] is False
    assert all(isinstance(value, str | bool | int) for value in facts.values())
