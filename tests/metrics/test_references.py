import numpy as np
import pytest
import torch

from varlit.errors import UserError
from varlit.metrics import references
from varlit.metrics.image_features import ImageFeatures
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.reference_files import cache_folder, write_reference
from varlit.metrics.references import (
    cached_reference,
    check_reference,
    make_reference,
    read_reference,
)

COUNT = 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "references"


@pytest.fixture
def network(colours) -> FeatureNetwork:
    return FeatureNetwork(colours, "colours")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)


def gather(pixels: np.ndarray):
    def gather(features: ImageFeatures) -> None:
        gather.calls += 1
        features.update(torch.arange(len(pixels)), torch.tensor(pixels).permute(0, 3, 1, 2))

    gather.calls = 0
    return gather


def inception_like(colours) -> FeatureNetwork:
    """Colours under the name that alone may take foreign `mu` and `sigma`."""
    return FeatureNetwork(colours, "inception", is_inception=True)


def same(a, b) -> bool:
    parts = [(a.pool.mean, b.pool.mean), (a.pool.cov, b.pool.cov), (a.rows, b.rows)]
    parts += [(a.spatial.mean, b.spatial.mean), (a.spatial.cov, b.spatial.cov)]
    return all(torch.equal(x, y) for x, y in parts) and a.image_px == b.image_px


def test_images_of_an_npz_and_a_stream_of_them_are_one_reference(tmp_path, network, pixels):
    np.savez(tmp_path / "ref.npz", pixels)
    from_file = read_reference(tmp_path / "ref.npz", network, batch_size=COUNT)
    features = ImageFeatures(network)
    gather(pixels)(features)
    made = make_reference(features, "ref.npz", "0")
    assert same(from_file, made)
    assert (from_file.name, from_file.pool.count, from_file.image_px) == ("ref.npz", COUNT, 8)
    expected = np.cov(made.rows.double().numpy(), rowvar=False)
    np.testing.assert_allclose(made.pool.cov.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_it_is_computed_once_for_a_source_and_a_network(network, colours, pixels, cache):
    look = gather(pixels)
    first = cached_reference("a", "source", network, look)
    again = cached_reference("b", "source", network, look)
    assert look.calls == 1
    assert same(first, again)
    assert (first.name, again.name) == ("a", "b")
    cached_reference("a", "other source", network, look)
    cached_reference("a", "source", network, look, num_rows=10)
    with torch.no_grad():
        colours.pool[0, 0] += 1
    cached_reference("a", "source", FeatureNetwork(colours, "colours"), look)
    cached_reference("a", "source", FeatureNetwork(colours, "colours", resize="x"), look)
    assert look.calls == 5
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", "half", "strange"])
def test_a_damaged_cache_is_computed_anew(network, pixels, cache, content):
    look = gather(pixels)
    first = cached_reference("a", "source", network, look)
    (file,) = cache.iterdir()
    if content == "half":
        content = file.read_bytes()[: file.stat().st_size // 2]
    if content == "strange":
        np.savez(file, mu=np.zeros(6), sigma=np.eye(6))
    else:
        file.write_bytes(content)
    again = cached_reference("a", "source", network, look)
    assert look.calls == 2
    assert same(first, again)
    cached_reference("a", "source", network, look)
    assert look.calls == 2


def test_without_a_place_for_a_cache_it_is_computed_each_time(
    network, pixels, monkeypatch, tmp_path
):
    look = gather(pixels)
    monkeypatch.setenv("VARLIT_CACHE", "")
    assert cache_folder() is None
    cached_reference("a", "source", network, look)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VARLIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not kept"):
        cached_reference("a", "source", network, look)
    assert look.calls == 2
    monkeypatch.delenv("VARLIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/varlit/references"


def test_a_written_reference_is_read_by_us_and_by_others(tmp_path, network, colours, pixels):
    features = ImageFeatures(network)
    gather(pixels)(features)
    made = make_reference(features, "flowers val", "0")
    path = tmp_path / "deep" / "mine.npz"
    write_reference(made, path)
    assert same(read_reference(path, network), made)
    assert read_reference(path, network).name == "mine.npz"
    with np.load(path, allow_pickle=False) as archive:
        assert archive["mu"].shape == (6,)
        assert archive["sigma_s"].shape == (4, 4)
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.npz"]
    with torch.no_grad():
        colours.pool[0, 0] += 1
    with pytest.raises(UserError, match="no reference by colours with these weights"):
        read_reference(path, FeatureNetwork(colours, "colours"))


def test_adm_s_file_gives_its_statistics_for_fid_and_its_images_for_the_rest(
    tmp_path, colours, pixels
):
    network, cov = inception_like(colours), np.eye(6) * 2
    stats = {"mu": np.ones(6, np.float32), "sigma": cov, "mu_s": np.ones(4), "sigma_s": np.eye(4)}
    np.savez(tmp_path / "adm.npz", pixels, **stats)
    found = read_reference(tmp_path / "adm.npz", network)
    assert found.pool.mean.tolist() == [1] * 6
    assert found.pool.count is None
    assert found.spatial.mean.tolist() == [1] * 4
    assert found.rows.shape == (COUNT, 6)
    assert check_reference(found, network, image_px=8) == ""
    only = {name: stats[name] for name in ("mu", "sigma")}
    np.savez(tmp_path / "fid.npz", **only)
    found = read_reference(tmp_path / "fid.npz", network)
    assert found.spatial is None
    assert found.rows is None


def test_statistics_of_unknown_origin_are_for_inception_only(tmp_path, network, pixels):
    stats = {"mu": np.ones(6), "sigma": np.eye(6)}
    np.savez(tmp_path / "fid.npz", **stats)
    with pytest.raises(UserError, match=r"expected `arr_0` \(images\) for colours to see"):
        read_reference(tmp_path / "fid.npz", network)
    np.savez(tmp_path / "adm.npz", pixels, **stats)
    assert read_reference(tmp_path / "adm.npz", network).pool.count == COUNT


def test_a_reference_that_does_not_fit_is_refused_before_anything_is_drawn(
    tmp_path, network, colours, pixels
):
    features = ImageFeatures(network)
    gather(pixels[:6])(features)
    made = make_reference(features, "few", "0")
    with pytest.raises(UserError, match="6 reference images for 6 features"):
        check_reference(made, network)
    assert "6 reference images" in check_reference(made, network, 8, allow_few=True)
    with pytest.raises(UserError, match="images of 8 px; the samples have 16 px"):
        check_reference(made, network, 16, allow_few=True)
    with pytest.raises(UserError, match="6 features of colours; the samples will be seen by other"):
        check_reference(made, FeatureNetwork(colours, "other"))
    with torch.no_grad():
        colours.pool[0, 0] += 1
    with pytest.raises(UserError, match="with other weights"):
        check_reference(made, FeatureNetwork(colours, "colours"))
    np.savez(tmp_path / "fid.npz", mu=np.ones(9), sigma=np.eye(9))
    wrong = read_reference(tmp_path / "fid.npz", inception_like(colours))
    with pytest.raises(UserError, match=r"9 features of inception.*inception \(6\)"):
        check_reference(wrong, inception_like(colours))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no reference at"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 broken", "cannot be read"),
        ({"x": np.zeros(3)}, r"holds \['x'\]; expected `arr_0` \(images\), or `mu` and `sigma`"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"sigma \(D, D\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * np.nan}, "finite"),
        ({"mu": np.zeros(3, np.uint8), "sigma": np.eye(3)}, "finite numbers; got uint8"),
        ({"arr_0": np.zeros((9, 4, 4, 4), np.uint8)}, r"got uint8 \(9, 4, 4, 4\)"),
    ],
)
def test_a_file_that_is_no_reference_is_named(tmp_path, colours, content, message):
    path = tmp_path / "reference.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError, match=message) as caught:
        read_reference(path, inception_like(colours))
    assert str(path) in str(caught.value)


def test_an_empty_set_is_no_reference(network):
    with pytest.raises(UserError, match="holds no images"):
        make_reference(ImageFeatures(network), "nothing", "0")
    assert references.NUM_ROWS == 10_000
