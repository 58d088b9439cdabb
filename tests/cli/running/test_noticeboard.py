"""What processes tell each other over torch's store, which may outlive an attempt of torchrun."""

import pytest
import torch.distributed as dist

from varlit.cli.running.noticeboard import Failure, Noticeboard


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.TCPStore:
    """The store of torchrun's agent, and the environment of the only process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    return store


def test_the_first_failure_counts_for_all(store: dist.TCPStore) -> None:
    first, second = Failure(1, "no room", exit_code=2), Failure(0, "it is gone")
    board = Noticeboard()
    assert board.failure() is None
    assert board.post(first) == first
    assert board.post(second) == first
    assert Noticeboard().failure() == first


def test_a_restart_does_not_read_what_ended_the_attempt_before(
    store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    before = Noticeboard()
    before.post(Failure(0, "a node was lost"))
    before.beat()
    before.leave()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = Noticeboard()
    assert again.failure() is None
    assert again.beats() == [0]
    assert not again.have_left([0])
