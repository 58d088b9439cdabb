from typing import Any

import numpy as np
import pytest
import torch

from varlit.data.crops import SquareCrop
from varlit.data.formats.remote import RemoteShards, open_remote
from varlit.data.image_source import Handling
from varlit.data.loader import BAD_FILES
from varlit.data.order import BatchIndex, FixedBatchSampler
from varlit.data.stream_order import ShardSampler
from varlit.data.stream_source import StreamedBatches, StreamSource

CROP = SquareCrop(16, 1.125, horizontal_flip=False, seed=0)


def index(*rows: int, views: tuple[int, ...] = ()) -> BatchIndex:
    return BatchIndex(np.array(rows), np.array(views or [0] * len(rows)))


def stream(shards: RemoteShards, *batches: BatchIndex, num_spares: int = 0) -> StreamedBatches:
    return StreamedBatches(FixedBatchSampler(batches), shards, num_spares)


def reds(batch: dict[str, Any]) -> list[int]:
    """The rows that the pixels tell."""
    return ((batch["image"][:, 0].mean((1, 2)) + 1) * 127.5).round().int().tolist()


def test_any_order_of_rows_gets_their_images(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards()
    shards = open_remote(shard_server.url)["train"]
    source = StreamSource(shards, CROP, Handling())
    sampler = StreamedBatches(ShardSampler(shards.counts, 8, 4), shards, 2)
    batches = [source[index] for index in sampler.batches(0)]
    rows = [row for batch in batches for row in batch["id"].tolist()]
    assert [row for batch in batches for row in reds(batch)] == rows
    assert len(set(rows)) == 40
    assert [r for batch in batches for r in batch["label"].tolist()] == [r % 3 for r in rows]
    tars = [name for name in shard_server.asked if name.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 5, "each shard is fetched once"
    backwards = source[index(39, 3, 20)]
    assert reds(backwards) == [39, 3, 20], "also where the images do not come with the batch"


def test_shards_that_are_not_needed_are_not_fetched(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards()
    shards = open_remote(shard_server.url)["train"]
    batches = list(stream(shards, index(11, 13), index(16, 30)).batches(0))
    assert [sorted(batch.samples) for batch in batches] == [[11, 13], [16, 30]]
    assert shard_server.asked[1:] == ["train-001.tar", "train-003.tar"]


def test_used_images_are_forgotten(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards((100,))
    shards = open_remote(shard_server.url)["train"]
    batches = stream(shards, *[index(row) for row in range(100)])
    filled = batches.filled(0)
    for _ in range(50):
        next(filled)
    assert filled.gi_frame is not None
    assert len(filled.gi_frame.f_locals["reader"].held) <= 2
    filled.close()


def test_views_of_an_image_may_straddle_batches(make_shards: Any, shard_server: Any) -> None:
    shard_server.folder = make_shards((4,))
    shards = open_remote(shard_server.url)["train"]
    parts = [index(0, 0, 0, 1, views=(0, 1, 2, 0)), index(1, 1, 3, 3, views=(1, 2, 0, 1))]
    source = StreamSource(shards, CROP, Handling("mark", whole=True))
    batches = [source[part] for part in stream(shards, *parts).batches(0)]
    assert [row for batch in batches for row in reds(batch)] == [0, 0, 0, 1, 1, 1, 3, 3]


def damage(shards: RemoteShards, server: Any, shard: int, row: int) -> None:
    """Overwrite an image within its shard."""
    path = server.folder / shards.shards[shard].file
    content = path.read_bytes()
    place = content.index(f"image{row:04d}.png".encode()) + 512
    path.write_bytes(content[:place] + b"not an image" + content[place + 12 :])


def test_a_broken_image_is_marked_and_the_others_keep_their_numbers(
    make_shards: Any, shard_server: Any
) -> None:
    shard_server.folder = make_shards((3, 3, 3))
    shards = open_remote(shard_server.url)["train"]
    damage(shards, shard_server, 0, 1)
    (shard_server.folder / "train-001.tar").write_bytes(b"not a tar" * 1000)
    source = StreamSource(shards, CROP, Handling("mark"))
    batches = [
        source[part] for part in stream(shards, index(0, 1, 2, 3), index(4, 5, 6)).batches(0)
    ]
    ids = torch.cat([batch["id"] for batch in batches]).tolist()
    assert ids == [0, -2, 2, -4, -5, -6, 6]
    bad = {bad.name: bad for batch in batches for bad in batch[BAD_FILES]}
    assert sorted(name.rpartition(".tar")[2] for name in bad) == ["", "/image0001.png"]
    assert bad[shards.tar(1).url].num_images == 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_broken_is_replaced_by_what_is_at_hand(
    make_shards: Any, shard_server: Any, batch_size: int
) -> None:
    shard_server.folder = make_shards()
    shards = open_remote(shard_server.url)["train"]
    damage(shards, shard_server, 3, 30)
    (shard_server.folder / "train-002.tar").unlink()
    lost = {30, *range(17, 29)}
    source = StreamSource(shards, CROP, Handling("replace"))
    whole: list[list[int]] = []
    for start in (0, 5):
        sampler = ShardSampler(shards.counts, 3, batch_size, seed=7)
        planned = [index.ids.tolist() for index in sampler.batches(start)]
        batches = [source[part] for part in StreamedBatches(sampler, shards, 4).batches(start)]
        ids = [batch["id"].tolist() for batch in batches]
        assert [len(batch) for batch in ids] == [batch_size] * len(planned)
        for got, wanted, batch in zip(ids, planned, batches, strict=True):
            assert reds(batch) == got
            assert all(g == w for g, w in zip(got, wanted, strict=True) if w not in lost)
            assert not lost & set(got)
        whole = whole or ids
        assert ids == whole[start:], "a resumed run replaces by the same"
