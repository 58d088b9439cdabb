"""The keeper of the codes, over a network whose latent maps are its images."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.quantizer import MultiScaleQuantizer
from varlit.ops.counting import code_counts, code_usage
from varlit.training.codebook import GRACE, CodebookConfig, CodebookKeeper

CONFIG = TokenizerConfig(codebook_size=64, codebook_dim=6, scales=(1, 2, 4))
DEAD = 7  # a code that nothing finds


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.quantizer = MultiScaleQuantizer(CONFIG)

    def features(self, images):
        return images

    def forward(self, images, num_scales=None):
        return self.quantizer(images, num_scales)


def make_network():
    torch.manual_seed(1)
    return Network()


def keeper_of(tokenizer=CONFIG, **config):
    return CodebookKeeper(CodebookConfig(**config), tokenizer)


def smooth_maps(num_images, seed=0):
    """Random maps of all scales at once, around a mean far from 0, as encoders make them."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.full((num_images, 6, 4, 4), 3.0)
    for side in CONFIG.scales:
        part = torch.randn(num_images, 6, side, side, generator=generator)
        maps = maps + nn.functional.interpolate(part, size=4, mode="bicubic")
    return maps


def usage_of(network, images):
    counts = code_counts(network(images).tokens, network.quantizer.scales, CONFIG.codebook_size)
    return code_usage(counts)


def lively_network():
    """Codes in the midst of the vectors, but for one that is far away."""
    network = make_network()
    keeper_of(init="kmeans").prepare(network, smooth_maps(32))
    with torch.no_grad():
        network.quantizer.codebook.weight[DEAD] = 1e3
    return network


def codes_of(network):
    return network.quantizer.codebook.weight.detach().clone()


def test_by_default_nothing_is_done():
    network, keeper = make_network(), keeper_of()
    before, output = codes_of(network), network(smooth_maps(4))
    keeper.claim(network)
    keeper.prepare(network, smooth_maps(4))
    assert keeper.draw_num_scales(4) is None
    assert not keeper.update(network, output.tokens, output.searched).any()
    assert torch.equal(codes_of(network), before)
    assert network.quantizer.codebook.weight.requires_grad
    assert not list(keeper.parameters())


def test_kmeans_puts_codes_to_use_that_uniform_ones_leave_idle():
    network, unseen = make_network(), smooth_maps(64, seed=1)
    assert usage_of(network, unseen).max() < 0.3
    keeper_of(init="kmeans").prepare(network, smooth_maps(32))
    usage = usage_of(network, unseen)
    assert usage[1:].min() > 0.5, "at the finer scales"
    assert usage[-1] > 0.9
    errors = [
        (network(unseen).f_hat - unseen).square().mean() for network in (make_network(), network)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_kmeans_happens_once_in_a_run_and_not_again_when_it_is_resumed():
    network, keeper = make_network(), keeper_of(init="kmeans")
    keeper.prepare(network, smooth_maps(32))
    begun = codes_of(network)
    keeper.prepare(network, smooth_maps(32, seed=1))
    assert torch.equal(codes_of(network), begun), "as with accumulated gradients"
    output = network(smooth_maps(32))
    keeper.update(network, output.tokens, output.searched)
    resumed = keeper_of(init="kmeans")
    resumed.load_state_dict(keeper.state_dict())
    resumed.prepare(network, smooth_maps(32, seed=1))
    assert torch.equal(codes_of(network), begun)


def test_too_few_vectors_for_kmeans_are_told():
    with pytest.warns(UserWarning, match="21 vectors for 64 codes"):
        keeper_of(init="kmeans").prepare(make_network(), smooth_maps(1))


def test_hits_are_averages_of_counts_and_dead_codes_become_vectors_of_the_batch():
    network, keeper = lively_network(), keeper_of(restart_below=0.5, ema_decay=0.9)
    hits, grace = torch.full((64,), GRACE * 0.5), 0
    for step in range(20):
        output, before = network(smooth_maps(16, seed=step)), codes_of(network)
        counts = output.tokens.flatten().bincount(minlength=64)
        hits = 0.9 * hits + 0.1 * counts
        replaced = keeper.update(network, output.tokens, output.searched)
        assert torch.equal(replaced, hits < 0.5)
        hits[replaced] = GRACE * 0.5
        torch.testing.assert_close(keeper.hits, hits)
        after = codes_of(network)
        assert torch.equal(after[~replaced], before[~replaced])
        vectors = output.searched.flatten(0, 1)
        assert all((row == vectors).all(dim=1).any() for row in after[replaced])
        if replaced[DEAD]:
            break
        grace += 1
    assert 0.9 ** (grace + 1) * GRACE < 1 <= 0.9**grace * GRACE, "not before its time"
    assert after[DEAD].abs().max() < 100


def test_a_collapsed_codebook_comes_back_to_life():
    network, keeper = make_network(), keeper_of(restart_below=1.0, ema_decay=0.5)
    before = usage_of(network, smooth_maps(64, seed=99))
    for step in range(12):
        output = network(smooth_maps(32, seed=step))
        keeper.update(network, output.tokens, output.searched)
    assert before.max() < 0.3
    assert usage_of(network, smooth_maps(64, seed=99))[-1] > 0.8


def test_the_optimizer_forgets_replaced_codes_and_the_average_takes_them_over():
    network, average = lively_network(), lively_network()
    codes = network.quantizer.codebook.weight
    optimizer = torch.optim.AdamW(network.parameters())
    output = network(smooth_maps(16))
    output.codebook_loss.sum().backward()
    optimizer.step()
    state = optimizer.state[codes]
    state["exp_avg"].fill_(1)
    state["exp_avg_sq"].fill_(1)
    keeper, old = keeper_of(restart_below=0.5, ema_decay=0.1), codes_of(average)
    replaced = keeper.update(network, output.tokens, output.searched, optimizer, average)
    assert replaced[DEAD]
    assert not replaced.all()
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name], (~replaced)[:, None].expand(-1, 6).float())
    assert state["step"] == 1
    averaged = codes_of(average)
    assert torch.equal(averaged[replaced], codes_of(network)[replaced])
    assert torch.equal(averaged[~replaced], old[~replaced])


def test_a_threshold_that_no_code_could_keep_is_refused_with_one_that_it_could():
    network, keeper = make_network(), keeper_of(restart_below=2.0)
    output = network(smooth_maps(4))  # 84 vectors
    with pytest.raises(UserError, match=r"1\.31 vectors a code\. Set it to 0\.13 or less"):
        keeper.update(network, output.tokens, output.searched)


def test_averaged_codes_come_to_the_means_of_their_vectors():
    network, keeper = lively_network(), keeper_of(update="ema", ema_decay=0.5)
    output, before = network(smooth_maps(32)), codes_of(network)
    for _ in range(40):
        # The same vectors again: the codes have moved, but are not searched anew.
        assert not keeper.update(network, output.tokens, output.searched).any()
    tokens, vectors = output.tokens.flatten(), output.searched.flatten(0, 1)
    for code in range(64):
        own = vectors[tokens == code]
        expected = own.mean(dim=0) if len(own) else before[code]
        torch.testing.assert_close(codes_of(network)[code], expected, atol=1e-5, rtol=1e-5)


def test_averaged_codes_are_a_ratio_of_two_averages():
    network, keeper = lively_network(), keeper_of(update="ema", ema_decay=0.8)
    weight, above = torch.ones(64, 1), codes_of(network).double()
    for step in range(5):
        output = network(smooth_maps(16, seed=step))
        one_hot = nn.functional.one_hot(output.tokens.flatten(), 64).double()
        weight = 0.8 * weight + 0.2 * one_hot.sum(dim=0)[:, None]
        above = 0.8 * above + 0.2 * one_hot.T @ output.searched.flatten(0, 1).double()
        keeper.update(network, output.tokens, output.searched)
    torch.testing.assert_close(codes_of(network), (above / weight).float())


def test_averaged_codes_are_out_of_the_optimizers_reach_and_phi_is_not():
    network, keeper = lively_network(), keeper_of(update="ema")
    keeper.claim(network)
    network(smooth_maps(4)).codebook_loss.sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert "quantizer.codebook.weight" in without
    assert all(network.quantizer.phis[i].weight.grad.any() for i in network.quantizer.phi_index)


def test_averaging_and_restarting_alone_bring_the_error_down():
    network = make_network()
    keeper = keeper_of(update="ema", ema_decay=0.7, restart_below=0.5)
    unseen = smooth_maps(32, seed=99)
    errors = []
    for step in range(25):
        errors.append((network(unseen).f_hat - unseen).square().mean().item())
        output = network(smooth_maps(32, seed=step))
        keeper.update(network, output.tokens, output.searched)
    assert errors[-1] < 0.2 * errors[0]
    assert usage_of(network, unseen)[-1] > 0.8


@pytest.mark.parametrize("fewest", [1, 2])
def test_dropout_cuts_its_share_of_the_images_evenly(fewest):
    keeper = keeper_of(dropout=0.4, dropout_min_scales=fewest)
    drawn = keeper.draw_num_scales(20_000)
    assert (drawn.dtype, drawn.min(), drawn.max()) == (torch.int64, fewest, 3)
    kinds = 4 - fewest
    for n in range(fewest, 3):
        assert (drawn == n).float().mean().item() == pytest.approx(0.4 / kinds, abs=0.02)
    assert torch.equal(drawn, keeper.draw_num_scales(20_000)), "a function of step and part"
    assert not torch.equal(drawn, keeper.draw_num_scales(20_000, micro_step=1))


def test_a_resumed_run_draws_and_restarts_as_the_whole_one():
    def go_on(keeper, network, steps):
        drawn = []
        for step in steps:
            drawn.append(keeper.draw_num_scales(8))
            output = network(smooth_maps(8, seed=step), drawn[-1])
            keeper.update(network, output.tokens, output.searched)
        return torch.stack(drawn)

    settings = {"restart_below": 0.5, "ema_decay": 0.5, "dropout": 0.5, "dropout_min_scales": 1}
    whole_network, whole = make_network(), keeper_of(**settings)
    drawn = go_on(whole, whole_network, range(6))
    assert len(drawn.unique(dim=0)) > 3
    network, first, second = make_network(), keeper_of(**settings), keeper_of(**settings)
    go_on(first, network, range(3))
    second.draw_num_scales(8)  # what was asked before loading is forgotten
    second.load_state_dict(first.state_dict())
    torch.manual_seed(5)  # the global stream plays no part
    assert torch.equal(go_on(second, network, range(3, 6)), drawn[3:])
    assert torch.equal(codes_of(network), codes_of(whole_network))
    assert torch.equal(second.hits, whole.hits)


def test_restarts_that_are_switched_on_later_give_every_code_its_time():
    network, off = lively_network(), keeper_of()
    output = network(smooth_maps(16))
    off.update(network, output.tokens, output.searched)
    on = keeper_of(restart_below=1.0)
    on.load_state_dict(off.state_dict())
    assert not on.update(network, output.tokens, output.searched).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restart_below": -1.0}, "must not be negative"),
        ({"ema_decay": 1.0}, "codebook.ema_decay must lie in 0..1, 1 excluded"),
        ({"dropout": 1.1}, "codebook.dropout must lie in 0..1"),
        ({"dropout": 0.1, "dropout_min_scales": 0}, "at least 1; got 0"),
        ({"dropout": 0.1, "dropout_min_scales": 4}, "more than the 3 scales"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        keeper_of(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"dropout_min_scales": 2}, "dropout_min_scales"),
        ({"dropout": 0.1, "dropout_min_scales": 3}, "dropout"),
    ],
)
def test_settings_that_are_ignored_are_told(settings, name):
    with pytest.warns(UserWarning, match=f"codebook.{name} is ignored"):
        keeper_of(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper_of(update="ema", ema_decay=0.9, dropout=0.1, dropout_min_scales=2)


def walk(rank=0, world_size=1):
    """Four steps with everything on; what the codes, hits and draws are in the end."""
    torch.manual_seed(rank)  # ranks have streams of their own
    keeper = keeper_of(
        init="kmeans", restart_below=0.9, update="ema", ema_decay=0.3, dropout=0.5,
        dropout_min_scales=1,
    )  # fmt: skip
    network, drawn, replaced = make_network(), [], []
    for step in range(4):
        images = smooth_maps(8, seed=step)[rank::world_size]
        keeper.prepare(network, images)
        drawn.append(keeper.draw_num_scales(len(images)))
        output = network(images, drawn[-1])
        replaced.append(keeper.update(network, output.tokens, output.searched))
    return {
        "codes": codes_of(network),
        "hits": keeper.hits,
        "drawn": torch.stack(drawn),
        "replaced": torch.stack(replaced),
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_never_waits_for_the_device():
    keeper = keeper_of(restart_below=0.5, update="ema", dropout=0.5, dropout_min_scales=1).cuda()
    network, images = lively_network().cuda(), smooth_maps(16).cuda()
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # one wait a run
        keeper.prepare(network, images)
        output = network(images, keeper.draw_num_scales(16))
        keeper.update(network, output.tokens, output.searched)
    torch.cuda.set_sync_debug_mode("default")


WORKER = """
import sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[3])
from test_codebook import walk
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
place = f"file://{folder}/store"
distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
torch.save(walk(rank, 2), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_the_codes_that_one_keeps(tmp_path):
    here = str(Path(__file__).parent)
    commands = [[sys.executable, "-c", WORKER, str(r), str(tmp_path), here] for r in range(2)]
    runs = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    alone = walk()
    assert alone["replaced"].any()
    for name in ("codes", "hits", "replaced"):
        assert torch.equal(first[name], second[name]), "ranks agree to the bit"
        torch.testing.assert_close(first[name], alone[name])
    interleaved = torch.stack((first["drawn"], second["drawn"]), dim=2).flatten(1)
    assert torch.equal(interleaved, alone["drawn"])
