"""Rows of numbers that are read again and again: in memory while there is room, beyond that in
files that the system maps in and out.
"""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Shelf:
    """Room for rows, in memory and on the disk.

    Args:
        folder: where files lie; they have no name there, so they go with the process, however it
            ends.
        room: bytes in memory. Blocks of rows are taken in turn; one that does not fit in what is
            left is on the disk.
    """

    def __init__(self, folder: Path | None = None, room: float = math.inf) -> None:
        self._folder, self._left = folder, room

    def block(self, rows: int) -> Callable[[Tensor], Tensor]:
        """What keeps a block: it takes some of its rows [n, ...] and gives them as they are kept.

        Args:
            rows: of the whole block.

        Raises:
            OSError: the disk is full.
        """
        place: list[Tensor] = []
        start = 0

        def keep(values: Tensor) -> Tensor:
            nonlocal start
            if not start:
                place.extend(self._taken(rows * values[0].numel(), values.dtype))
            end = start + len(values)
            own = place[0].view(rows, -1)[start:end] if place else None
            start = end
            return values.cpu() if own is None else own.copy_(values.flatten(1)).view_as(values)

        return keep

    def _taken(self, numbers: int, dtype: torch.dtype) -> list[Tensor]:
        """The file of a block; none where it fits into memory."""
        size = numbers * dtype.itemsize
        if size <= self._left or self._folder is None:
            self._left -= size
            return []
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            # A full disk is told now; behind a mapping it would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return [torch.from_file(file.name, shared=True, size=numbers, dtype=dtype)]
