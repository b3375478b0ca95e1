"""Orders of tiles: each once, by seed and epoch alone, the same for any number of processes."""

import numpy as np
import pytest

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.sampling import BlockOptions, EpochOrder, ProcessRank, in_chunks

BLOCKS = BlockOptions(tiles=16, window=256, shards=4)


@pytest.mark.parametrize("blocks", [None, BLOCKS])
def test_each_epoch_has_an_order_of_its_own_that_seed_and_epoch_decide(blocks: BlockOptions | None) -> None:
    def order(seed: int, epoch: int) -> bytes:
        return EpochOrder(1000, 24, seed, blocks).of(epoch).tobytes()

    assert order(0, 3) == order(0, 3)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("blocks", [None, BLOCKS])
@pytest.mark.parametrize("length", [24, 70, 1000, 1013, 4099])
def test_every_step_is_full_and_no_tile_stands_in_two(length: int, blocks: BlockOptions | None) -> None:
    order = EpochOrder(length, 24, 0, blocks)
    for epoch in range(4):
        found = order.of(epoch)
        assert found.shape == (order.steps, 24)
        assert len(np.unique(found)) == found.size
        assert found.min() >= 0
        assert found.max() < length


def test_all_tiles_get_their_turn_though_an_epoch_has_only_full_steps() -> None:
    for blocks in (None, BLOCKS):
        order = EpochOrder(1013, 24, 0, blocks)
        assert order.steps * 24 >= 900
        assert len(np.unique(np.concatenate([order.of(epoch) for epoch in range(20)]))) == 1013


def test_fewer_tiles_than_a_batch_make_one_smaller_batch() -> None:
    assert EpochOrder(70, 100, 0).of(0).shape == (1, 70)


def test_blocks_are_shuffled_within_windows_so_that_few_are_needed_at_a_time() -> None:
    order = EpochOrder(4096, 32, 0, BLOCKS)
    steps = order.of(0)
    window = 256 // 32
    for first in range(0, order.steps, window):
        tiles = np.sort(steps[first : first + window].ravel())
        assert len(np.unique(tiles // 16)) == 16  # 256 tiles from 16 blocks of 16, each read whole
        assert np.array_equal(np.unique(tiles // 16)[:, None] * 16 + np.arange(16), tiles.reshape(16, 16))
    one = steps[:window].ravel()
    assert np.abs(np.diff(one)).mean() > 500  # the blocks of a window come from all over, and are mixed


@pytest.mark.parametrize("blocks", [None, BLOCKS])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_have_the_batches_of_one_process_between_them(
    count: int, blocks: BlockOptions | None
) -> None:
    steps = EpochOrder(1000, 24, 0, blocks).of(1)
    parts = [ProcessRank(rank, count).columns_of(steps, blocks) for rank in range(count)]
    assert np.array_equal(np.concatenate(parts, axis=1), steps)


def test_with_blocks_each_process_reads_tiles_of_its_own_blocks_alone() -> None:
    steps = EpochOrder(1024, 32, 0, BLOCKS).of(0)
    own = [set(np.unique(ProcessRank(rank, 2).columns_of(steps, BLOCKS) // 16).tolist()) for rank in range(2)]
    assert not own[0] & own[1]


def test_a_batch_that_cannot_be_divided_is_refused_with_the_setting_to_change() -> None:
    with pytest.raises(TrainingError, match=r"data\.batch_size \(24\) cannot be divided among 5 processes"):
        ProcessRank(0, 5).columns_of(EpochOrder(100, 24, 0).of(0))
    with pytest.raises(
        TrainingError, match=r"data\.loader\.blocks\.shards \(4\) cannot be divided among 3 processes"
    ):
        ProcessRank(0, 3).columns_of(EpochOrder(1000, 24, 0, BLOCKS).of(0), BLOCKS)
    with pytest.raises(TrainingError, match="26 tiles cannot be divided into 4 shards"):
        EpochOrder(1000, 26, 0, BLOCKS)


@pytest.mark.parametrize("length", [1, 7, 16, 17, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_chunks_count_each_tile_once_and_are_alike_for_any_number_of_processes(
    length: int, count: int
) -> None:
    parts = [list(in_chunks(length, 16, ProcessRank(rank, count))) for rank in range(count)]
    assert len({len(part) for part in parts}) == 1
    assert {len(chunk) for part in parts for chunk in part} == {min(16, length)}
    everything = np.concatenate([chunk for part in parts for chunk in part])
    assert sorted(everything[everything >= 0].tolist()) == list(range(length))
    alone = {chunk.tobytes() for chunk in in_chunks(length, 16, ProcessRank())}
    assert {chunk.tobytes() for part in parts for chunk in part if (chunk >= 0).any()} == alone
