"""What lies on several ranks, on the disk: every rank writes the rows that it holds, of several
copies those of the first, and any number of ranks reads the rows that it needs.

The files are those of torch.distributed.checkpoint, one a rank, in a folder of their own. Rows are
written under a name of each rank, not as a DTensor: what SURE moves of a weight lies on the ranks
in parts of any size, which no DTensor describes.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from remnant.durable import digest_file, sync_tree
from remnant.ranks import (
    anywhere,
    count,
    first,
    in_first_replica,
    of_all,
    rank,
    rows_of,
    told,
)

# From so many bytes on a rank they are copied and written while the run goes on. Less is on the
# disk before the copy is worth its while.
BESIDE_FROM = 1 << 26


# Some rows of a tensor, by its name.
Read = Callable[[str, slice], Tensor]


class Saved(NamedTuple):
    """A folder that was written: its name, how many rows of every tensor each rank wrote, and the
    sha256 of its files.
    """

    folder: str
    rows: dict[str, tuple[int, ...]]
    digests: dict[str, str]


class Writing(NamedTuple):
    """A folder that is being written: where, the rows, and what ends when this rank's are there."""

    place: Path
    rows: dict[str, tuple[int, ...]]
    done: "Future[Metadata] | None"

    def is_done(self) -> bool:
        """Whether the first rank has written its rows, so that there is nothing to wait for."""
        return told(self.done is None or self.done.done())

    def end(self) -> Saved:
        """Wait for all ranks, and bring the folder to the disk."""
        if self.done is not None:
            self.done.result()
        own = [*self.place.glob(f"__{rank()}_*"), *([self.place / ".metadata"] if first() else [])]
        digests: dict[str, str] = {}
        for found in of_all({p.name: digest_file(p) for p in own}):
            digests |= found
        if first():
            sync_tree(self.place)
        return Saved(self.place.name, self.rows, digests)


def begin(
    named: Mapping[str, Tensor], folder: Path, beside: dist.ProcessGroup | None = None
) -> Writing:
    """Write some tensors' rows, all ranks at once.

    Args:
        named: the rows [rows, ...] of every tensor that this rank holds, by the same names on all
            ranks; free to change when the call is over.
        folder: the first rank's says where; what stands there is thrown away.
        beside: the ranks of the threads that write it while the run goes on, where it is large.
    """
    place = Path(told(str(folder)))
    if first():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    sizes = [found.sizes for found in rows_of(named.values())]
    rows = dict(zip(named, sizes, strict=True))
    given = named.items() if in_first_replica() else ()
    own: dict[str, Any] = {_key(name, rank()): t for name, t in given if len(t)}
    writer = FileSystemWriter(place)
    large = anywhere(sum(t.nbytes for t in own.values()) >= BESIDE_FROM)
    if not large or beside is None:
        save(own, storage_writer=writer)
        return Writing(place, rows, None)
    done = async_save(own, storage_writer=writer, process_group=beside)
    assert isinstance(done, Future)
    return Writing(place, rows, done)


def is_whole(saved: Saved, folder: Path) -> bool:
    """Whether all files are as they were written; every rank looks at some of them."""
    place = Path(told(str(folder))) / saved.folder
    mine = sorted(saved.digests.items())[rank() :: count()]
    good = [(place / n).is_file() and digest_file(place / n) == digest for n, digest in mine]
    return not anywhere(not all(good))


def reader(saved: Saved, folder: Path) -> Read:
    """The function that reads some rows of a tensor, each rank those that it asks for.

    Args:
        saved: a folder that was seen to be whole.
        folder: the first rank's says where it lies.
    """
    place = Path(told(str(folder))) / saved.folder
    source = _Reader(place)
    known = source.read_metadata().state_dict_metadata

    def read(name: str, wanted: slice) -> Tensor:
        sizes = saved.rows[name]
        begin, end, _ = wanted.indices(sum(sizes))
        shape, dtype = _stored(known[_key(name, sizes.index(max(sizes)))])
        start, found = 0, [torch.empty(0, *shape[1:], dtype=dtype)]
        for writer, size in enumerate(sizes):
            low, high = max(begin - start, 0), min(end - start, size)
            start += size
            if low < high:
                piece = torch.empty(size, *shape[1:], dtype=dtype)
                with warnings.catch_warnings():
                    # That one process loads is what is meant.
                    warnings.simplefilter("ignore")
                    load({_key(name, writer): piece}, storage_reader=source, no_dist=True)
                found.append(piece[low:high])
        return found[-1] if len(found) <= 2 else torch.cat(found)

    return read


class _Reader(FileSystemReader):
    """Reads its list of tensors once."""

    _metadata: Metadata | None = None

    def read_metadata(self, *given: Any, **named: Any) -> Metadata:
        """As the library's."""
        if self._metadata is None:
            self._metadata = super().read_metadata(*given, **named)
        return self._metadata


def _key(name: str, writer: int) -> str:
    return f"{name}@{writer}"


def _stored(entry: Any) -> tuple[torch.Size, torch.dtype]:
    assert isinstance(entry, TensorStorageMetadata)
    return entry.size, entry.properties.dtype
