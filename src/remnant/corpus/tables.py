"""Tables as records: CSV, TSV and Parquet."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

from remnant.errors import UserError, first_line

# As long as a file may be: the library's own limit cuts long texts.
_MOST_OF_A_CELL = 1 << 30
_SEPARATORS = ",;\t"


def separated(where: str, text: str, separator: str = "") -> list[dict[str, object]]:
    r"""The rows of a table whose first line names its columns.

    Args:
        where: the file, for what is said.
        text: its content.
        separator: of the cells; by default the comma, semicolon or tab that is the most frequent of
            the first line.

    Raises:
        UserError: a name twice, a quote that is not closed, or a row of another length.

    >>> separated("a.csv", 'question;answer\n"Who; where?";She\n')
    [{'question': 'Who; where?', 'answer': 'She'}]
    """
    separator = separator or max(_SEPARATORS, key=text.partition("\n")[0].count)
    before = csv.field_size_limit(_MOST_OF_A_CELL)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [row for row in lines if row]
    except csv.Error as error:
        raise UserError(
            f"{where} is no table: {first_line(error)}.",
            'Put cells with a quote or a line end in them between ", and double their own quotes.',
        ) from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        return []
    names, *others = rows
    _no_name_twice(where, names)
    for i, row in enumerate(others, 1):
        if len(row) != len(names):
            raise UserError(
                f"Row {i} of {where} has {len(row)} cells, and its first line {len(names)}.",
                'Put cells with a separator in them between ".',
            )
    return [dict(zip(names, row, strict=True)) for row in others]


def parquet(where: str, raw: bytes) -> list[dict[str, object]]:
    """The rows of a Parquet file.

    Raises:
        UserError: it is none, is cut, or has a column twice.
    """
    import pyarrow  # heavy, and only for this kind of file
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(raw))
        rows: list[dict[str, object]] = table.to_pylist()
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{where} is no Parquet table: {first_line(error).rstrip('.')}.",
            "It is cut or damaged: write or download it again.",
        ) from error
    _no_name_twice(where, table.column_names)
    return rows


def cells(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Rows with whole numbers as their digits.

    >>> cells([{"answer": 1912, "text": None}])
    [{'answer': '1912', 'text': None}]
    """
    return [_with_digits(row) for row in rows]


def _with_digits(row: dict[str, object]) -> dict[str, object]:
    return {name: str(cell) if type(cell) is int else cell for name, cell in row.items()}


def _no_name_twice(where: str, names: Sequence[str]) -> None:
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(
            f"{where} has the column '{twice[0]}' twice.", "Give its columns names of their own."
        )
