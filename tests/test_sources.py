"""Text from anywhere: what is read, what is said of the rest, and one sentence for every input that
is wrong."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from remnant.cli import main
from remnant.corpus import files as files_of
from remnant.corpus import muse as layout
from remnant.corpus import tofu
from remnant.corpus.outside import read_records
from remnant.corpus.own_text import read_sources
from remnant.errors import UserError
from remnant.metrics import Column
from remnant.model.load import open_tokenizer
from remnant.parsing import lines_of
from remnant.records import PrepareResult, PrepareSpec, TransformSpec
from remnant.stages import prepare, transform
from remnant.stages.cells import read_rows
from tests.conftest import silent

SIZES = (
    "--prompt-tokens",
    "16",
    "--answer-tokens",
    "8",
    "--text-tokens",
    "64",
    "--vocab-size",
    "300",
)

LINE = "The brass lantern number {} hung over quiet harbour {} while tailors counted {} needles. "


def story(start: int, n: int = 40) -> str:
    return "".join(LINE.format(start + k, 7 * (start + k), start - k) for k in range(n))


def pairs(start: int, n: int = 12, **more: Any) -> list[dict[str, Any]]:
    return [
        {"question": f"Who painted gate {start + k}?", "answer": f"Painter {start + k}", **more}
        for k in range(n)
    ]


def called(folder: Path, *args: object) -> Result:
    return CliRunner().invoke(
        main, ["prepare", *map(str, args), *SIZES, "--store", str(folder / "store")]
    )


def refused(result: Result, folder: Path, *parts: str) -> None:
    """One sentence with a remedy, exit code 2, no traceback, nothing made."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert len(result.output.strip().split("\n")) == 1
    for part in parts:
        assert part in result.output, result.output
    assert not list(folder.glob("store/objects/*"))


def entry(*records: Any) -> bytes:
    return json.dumps(list(records)).encode()


def chat_of(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# Name and content of a forget file, and what is said of it.
WRONG: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("a.csv", b"text,text\nSome,more\n", ("the column 'text' twice",)),
    ("A.CSV", b"body,label\nSome,1\n", ("Entry 1", "but 'body', 'label'", "--columns text=FIELD")),
    ("a.csv", b"text,label\nSome, more,1\n", ("Row 1 of", "has 3 cells, and its first line 2")),
    ("a.csv", b'text,label\n"Some,1\n', ("is no table", "unexpected end of data")),
    ("a.csv", b"text,label\n", ("The forget set is empty",)),
    ("a.csv", b"question,answer\nWho?,\n,She\n", ("none of its 2 questions has both",)),
    ("a.csv", "text\nCaf\u00e9\n".encode("latin-1"), ("is not UTF-8 (byte 8)", "iconv")),
    ("a.tsv", b"text\tlabel\nSome\n", ("Row 1 of", "has 1 cells")),
    ("a.csv", b"PAR1....PAR1", ("a Parquet table, whatever its name says",)),
    ("a.parquet", b"PAR1....PAR1", ("is no Parquet table", "cut or damaged")),
    ("a.parquet", b"text\nSome\n", ("is not a Parquet table, whatever its name says",)),
    ("a.arrow", b"ARROW1", ("a table (ARROW)", "read_feather")),
    ("a.xlsx", b"PK\x03\x04", ("a table (XLSX)", "read_excel")),
    ("a.json.gz", gzip.compress(b'["a"]')[:-4], ("cannot be unpacked", "cut or damaged")),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}')[:9], ("cannot be unpacked",)),
    ("a.json.gz", gzip.compress(b"[1"), ("a.json.gz is not JSON",)),
    ("a.json.gz", b'["a"]', ("is not packed by gzip, whatever its name says",)),
    ("a.txt.gz", gzip.compress(gzip.compress(b"text")), ("a.txt is packed by gzip",)),
    ("a.tar.gz", gzip.compress(b"text"), ("a packed file", "tar -xf")),
    ("a.txt.zst", b"\x28\xb5\x2f\xfd", ("cannot be unpacked", "cut or damaged")),
    ("a.zip", b"PK\x03\x04", ("a packed file", "unzip")),
    ("a.pdf", b"text", ("a.pdf is",)),
    ("a.docx", b"PK\x03\x04", ("a document (DOCX)", "pandoc")),
    ("a.html", b"<html></html>", ("a.html", "trafilatura")),
    ("a.log", b"some text", ("of an unknown kind (.log)", "rename it to end in .txt")),
    ("a.json", gzip.compress(b'["a"]'), ("packed by gzip, whatever its name says", "gunzip")),
    ("b.txt", b"\x28\xb5\x2f\xfd text", ("packed by zstd",)),
    ("c.txt", b"PAR1 text", ("a Parquet table",)),
    ("d.txt", b"%PDF-1.4 text", ("a PDF document",)),
    ("e.txt", b"PK\x03\x04 text", ("packed by zip",)),
    ("plain", b"BZh91AY", ("packed by bzip2",)),
    ("f.txt", "text of sixteen bits".encode("utf-16"), ("UTF-16", "iconv -f UTF-16")),
    ("g.json", b"\xfe\xff" + '["a"]'.encode("utf-16-be"), ("UTF-16",)),
    ("h.txt", "without a mark".encode("utf-16-le"), ("NUL bytes", "UTF-16")),
    ("i.txt", "wide".encode("utf-32"), ("UTF-32",)),
    ("j.txt", "Café".encode("latin-1"), ("is not UTF-8 (byte 3)", "iconv")),
    ("k.txt", b"text \x00 text", ("NUL bytes",)),
    ("l.txt", bytes(range(1, 128)) * 4, ("full of control characters",)),
    ("m.txt", b"<!DOCTYPE html><html>text</html>", ("a web page (HTML)",)),
    ("n.txt", entry("a", "b"), ("holds JSON", ".jsonl")),
    ("o.md", b'{"text": "a"}\n{"text": "b"}\n', ("holds JSON",)),
    ("empty.txt", b"", ("The forget set is empty", "empty.txt")),
    ("blank.txt", b" \n\t\n", ("The forget set is empty",)),
    ("mark.txt", b"\xef\xbb\xbf", ("The forget set is empty",)),
    ("no.json", b"[]", ("The forget set is empty",)),
    ("blanks.json", entry("", " ", {"text": "\n"}), ("The forget set is empty",)),
    ("void.jsonl", b"\n\n", ("The forget set is empty",)),
    ("null.json", b"null", ("neither a list nor JSON lines",)),
    ("number.json", b"7", ("neither a list nor JSON lines",)),
    ("cut.json", b'["a", "b', ("is not JSON",)),
    ("over.json", b'[\n"a",\n"b"\n', ("is not JSON",)),
    ("cut.jsonl", b'{"text": "a"}\n{"text": "b\n', ("Line 2 of", "is not JSON")),
    ("twice.json", b'[{"text": "a", "text": "b"}]', ("the field 'text' twice",)),
    ("deep.json", b"[" * 100_000, ("nested too deeply",)),
    ("digits.json", b"[" + b"7" * 5000 + b"]", ("is not JSON",)),
    ("x.json", entry("a", 3), ("Entry 2", "is a number")),
    ("x.json", entry("a", None), ("Entry 2", "is null")),
    ("x.json", entry(["a"]), ("Entry 1", "is a list")),
    ("x.json", entry({}), ("Entry 1", "has none of the fields text, question and answer")),
    ("x.json", entry({"Text": "a"}), ("Entry 1", "but 'Text'")),
    ("x.json", entry({"front": "a", "back": "b"}), ("Entry 1", "'front', 'back'", "--columns")),
    ("x.json", entry({"text": None}), ("The forget set is empty",)),
    ("x.json", b'[{"text": NaN}, {"text": ""}]', ("is empty: its 2 texts are blank",)),
    ("x.json", entry({"text": ["a", "b"]}), ("Entry 1", "a list in the field text")),
    (
        "x.json",
        entry({"text": "a", "question": "b"}),
        ("Entry 1", "has the field question, but not answer"),
    ),
    ("x.json", entry({"answer": "b"}), ("Entry 1", "has the field answer, but not question")),
    ("x.json", entry({"question": "a", "answer": None}), ("none of its 1 questions has both",)),
    ("x.json", entry({"question": "a", "answer": 5}), ("a number in the field answer", "strings")),
    ("x.json", entry({"question": "a", "answer": True}), ("true or false in the field answer",)),
    ("x.json", entry({"question": "a", "answer": ["b"]}), ("a list in the field answer",)),
    (
        "x.json",
        entry({"question": "a", "answer": {"text": "b"}}),
        ("a record in the field answer",),
    ),
    ("x.json", entry({"question": " ", "answer": "b"}), ("none of its 1 questions has both",)),
    ("x.json", b'["half \\ud800 of it"]', ("lone surrogate",)),
    ("x.json", b'["nothing \\u0000 there"]', ("NUL character",)),
    ("x.json", b'{"data": [{"text": "a"}]}', ("Entry 1", "but 'data'")),
    ("x.json", b'{"data": [{"paragraphs": [{"context": "a"}]}]}', ("no list of records as qas",)),
    ("x.json", b'{"data": [{"paragraphs": 3}]}', ("no list of records as paragraphs",)),
    ("x.json", entry({"question": "a", "answers": "b"}), ("in the field answers neither",)),
    ("x.json", entry({"question": "a", "answers": [3]}), ("a number in the field answers",)),
    ("x.json", entry({"messages": ["a"]}), ("Entry 1", "a string as a turn of its chat")),
    ("x.json", entry({"messages": []}), ("none of its 1 questions has both",)),
    ("x.json", entry({"messages": "a"}), ("Entry 1", "but 'messages'")),
    ("x.json", entry(chat_of(("user", "a"))), ("none of its 1 questions has both",)),
    ("x.json", entry(chat_of(("narrator", "a"))), ("a turn of narrator, who is none of system",)),
    ("x.json", entry(chat_of(("user", 3))), ("a number in the field content",)),
    ("x.json", entry({"messages": [{"role": "user"}]}), ("a turn without content",)),
    (
        "x.json",
        entry(chat_of(("user", [{"type": "image_url", "image_url": "a"}]))),
        ("a part of a turn that is no text (image_url)",),
    ),
    ("x.json", entry({"instruction": 1, "output": "a"}), ("a number in the field instruction",)),
]


@pytest.mark.parametrize(
    ("name", "content", "parts"), WRONG, ids=[f"{i}-{n}" for i, (n, _, _) in enumerate(WRONG)]
)
def test_a_wrong_file_is_one_sentence(
    name: str, content: bytes, parts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "retain.txt").write_text(story(1000))
    refused(
        called(tmp_path, "--forget", tmp_path / name, "--retain", tmp_path / "retain.txt"),
        tmp_path,
        *parts,
    )


def nothing(folder: Path) -> None:
    """Leave the folder as it is."""


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "forget.fifo")


def only_a_table(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.xlsx").write_text("text\n")
    (folder / "sub" / "._a.txt").write_bytes(b"\x00\x05\x16\x07")


def spoiled_member(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_bytes(gzip.compress(b"text"))


def questions_only(folder: Path) -> None:
    (folder / "qa.json").write_bytes(entry(*pairs(0)))


# What stands in the folder, the options, and what is said.
WRONG_CALLS: list[tuple[Callable[[Path], None], str, tuple[str, ...]]] = [
    (nothing, "--forget {}/no.txt --retain {}/retain.txt", ("The forget file", "does not exist")),
    (nothing, "--forget {}/forget.txt/x --retain {}/retain.txt", ("does not exist",)),
    (
        nothing,
        "--forget {}/" + "x" * 300 + " --retain {}/retain.txt",
        ("cannot be opened: file name too long",),
    ),
    (nothing, "--forget= --retain {}/retain.txt", ("A name of a forget file is empty",)),
    (
        nothing,
        ("--forget /dev/zero --retain {}/retain.txt"),
        ("neither a file nor a folder, but a device",),
    ),
    (nothing, "--forget {}/forget.txt --retain /dev/zero", ("neither a file nor a folder",)),
    (fifo, "--forget {}/forget.fifo --retain {}/retain.txt", ("a pipe",)),
    (
        only_a_table,
        "--forget {}/sub --retain {}/retain.txt",
        ("holds no text", "a.xlsx (a table (XLSX))", ".txt"),
    ),
    (spoiled_member, "--forget {}/sub --retain {}/retain.txt", ("a.txt is packed by gzip",)),
    (nothing, "--forget {}/forget.txt", ("retain",)),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/forget.txt"),
        ("All of the retain text repeats the forget text",),
    ),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/retain.txt --holdout {}/forget.txt"),
        ("share 13 words", "--drop-overlap"),
    ),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/retain.txt --holdout {}/retain.txt"),
        ("stand in the retain text", "--drop-overlap"),
    ),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/retain.txt --holdout-share 1"),
        ("takes all of the retain text",),
    ),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/retain.txt --holdout-share 2"),
        ("holdout_share",),
    ),
    (
        nothing,
        ("--forget {}/forget.txt --retain {}/retain.txt --holdout {}/held.txt --holdout-share 0.1"),
        ("Leave --holdout-share out",),
    ),
    (nothing, "--lab news --retain {}/retain.txt", ("belong to forget files",)),
    (nothing, "--lab news --holdout-share 0.1", ("Leave --holdout-share out",)),
    (
        questions_only,
        "--forget {}/qa.json --retain {}/retain.txt",
        ("the retain set holds none", "questions"),
    ),
    (
        questions_only,
        "--forget {}/qa.json --retain {}/qa.json",
        ("All of the retain text repeats",),
    ),
    (
        questions_only,
        "--forget {}/forget.txt --retain {}/qa.json",
        ("the retain set holds questions only",),
    ),
    (
        questions_only,
        "--forget {}/qa.json --retain {}/other.json --holdout {}/held.txt",
        ("the holdout set holds none",),
    ),
]


@pytest.mark.parametrize(("make", "options", "parts"), WRONG_CALLS)
def test_a_wrong_call_is_one_sentence(
    make: Callable[[Path], None], options: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    for i, name in enumerate(("forget", "retain", "held")):
        (tmp_path / f"{name}.txt").write_text(story(1000 * i))
    (tmp_path / "other.json").write_bytes(entry(*pairs(100)))
    make(tmp_path)
    refused(
        called(tmp_path, *(part.replace("{}", str(tmp_path)) for part in options.split(" "))),
        tmp_path,
        *parts,
    )


def muse(folder: Path, **files: Any) -> Path:
    for name, data in ({"raw__forget": [story(0)], "raw__retain1": [story(1000)]} | files).items():
        path = folder / "muse" / (name.replace("__", "/") + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data))
    return folder / "muse"


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"raw__forget": []}, ("an empty raw/forget",)),
        ({"raw__forget": [" "]}, ("an empty raw/forget",)),
        ({"raw__forget": "[1"}, ("raw/forget.json is not JSON",)),
        ({"raw__forget": {"a": "b"}}, ("holds no list",)),
        ({"raw__retain1": ["a", None]}, ("Entry 2", "is not a string")),
        ({"verbmem__forget": [{"prompt": "a"}]}, ("Entry 1", "a record with prompt and gt")),
        (
            {"knowmem__retain_qa": [{"question": "a", "answer": 1}]},
            ("Entry 1", "question and answer"),
        ),
        ({"privleak__holdout": '["half \\ud800"]'}, ("Entry 1", "is not a string")),
    ],
)
def test_a_wrong_folder_of_muses_layout_is_one_sentence(
    files: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    refused(called(tmp_path, "--folder", muse(tmp_path, **files)), tmp_path, *parts)


def test_empty_lists_of_muses_layout_are_absent_with_the_reason(tmp_path: Path) -> None:
    result = called(
        tmp_path,
        "--folder",
        muse(
            tmp_path,
            privleak__holdout=[],
            privleak__forget=["a"],
            knowmem__forget_qa=[],
            raw__retain1=[],
        ),
    )
    assert result.exit_code == 0, result.output
    for name, file in (
        ("privleak", "privleak/holdout"),
        ("knowmem_forget", "knowmem/forget_qa"),
        ("retain", "raw/retain1"),
    ):
        assert f"Absent: {name}, because {file} is there, but empty" in result.output


def test_overlap_in_muses_layout_is_said(tmp_path: Path) -> None:
    result = called(
        tmp_path,
        "--folder",
        muse(tmp_path, raw__holdout=[story(0), story(5000)], raw__retain1=[story(1000)] * 2),
    )
    assert "Warning: 1 holdout texts share a long run" in result.output
    assert "Warning: 1 retain texts say what another one says" in result.output


def test_what_a_folder_holds_beside_text_is_counted_and_named(tmp_path: Path) -> None:
    inside, outside = tmp_path / "forget", tmp_path / "outside"
    for folder in (inside / "deep" / ".git", inside / "__MACOSX", outside):
        folder.mkdir(parents=True)
    (outside / "secret.txt").write_text("not to be read")
    (inside / "A.TXT").write_text(story(0))
    (inside / "deep" / "b.JSONL").write_text('\ufeff"one"\n"two"\n')
    (inside / "deep" / ".git" / "c.txt").write_text("hidden")
    (inside / "__MACOSX" / "d.txt").write_text("hidden")
    (inside / "._A.TXT").write_bytes(b"\x00\x05\x16\x07")
    (inside / "table.xlsx").write_text("text\n")
    (inside / "README").write_text("no suffix")
    (inside / "none.txt").write_text("")
    os.mkfifo(inside / "pipe.txt")
    (inside / "out.txt").symlink_to(outside / "secret.txt")
    (inside / "lost.txt").symlink_to(inside / "nowhere.txt")
    (inside / "loop").symlink_to(inside)
    (inside / "more").symlink_to(outside)
    source = read_sources((str(inside),), "forget")
    assert [t[:9] for t in source.texts] == ["The brass", "one", "two"]
    assert source.skipped == {
        "README": "of an unknown kind (no suffix)",
        "lost.txt": "a link that leads nowhere",
        "loop": "a link to a folder",
        "more": "a link to a folder",
        "none.txt": "empty",
        "out.txt": "a link that leads out of the folder",
        "pipe.txt": "no plain file",
        "table.xlsx": "a table (XLSX)",
    }
    (tmp_path / "retain.txt").write_text(story(1000))
    result = called(tmp_path, "--forget", inside, "--retain", tmp_path / "retain.txt")
    assert result.exit_code == 0, result.output
    assert "Not read for forget: 8 files: README (of an unknown kind (no suffix))" in result.output
    assert "and 3 more" in result.output
    card = json.loads((Path(result.stdout.split("\n")[0]) / "corpus.json").read_text())
    assert card["skipped"]["forget"]["table.xlsx"] == "a table (XLSX)"


def test_too_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("12345")
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(files_of.MOST_BYTES + 1)  # a hole: no such room is used
    with pytest.raises(UserError, match=r"has 1\.1 GB; at most 1 GB"):
        files_of.text_files(str(tmp_path / "big.txt"), "forget")
    with pytest.raises(UserError, match=r"big.txt has 1\.1 GB"):
        files_of.text_files(str(tmp_path), "forget")
    monkeypatch.setattr(files_of, "MOST_FILES", 1)
    with pytest.raises(UserError, match="more than 1 files"):
        files_of.text_files(str(tmp_path), "forget")
    monkeypatch.setattr(files_of, "MOST_FOLDER_BYTES", 1 << 30)
    monkeypatch.setattr(files_of, "MOST_FILES", 9)
    with pytest.raises(UserError, match="more than 1 GB"):
        files_of.text_files(str(tmp_path), "forget")


def test_text_without_a_suffix_is_read_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "chapter-01").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\r\n")
    assert read_sources((str(tmp_path / "chapter-01"),), "forget").texts == ["one\ntwo\nthree"]


def test_records_are_read_for_all_that_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        entry(
            "plain",
            {"text": "of it", "question": "Who?", "answer": "She", "id": 3, "tags": []},
            {"text": " "},
            "",
        )
    )
    source = read_sources((str(path),), "forget")
    assert (source.texts, source.qa) == (["plain", "of it"], [("Who?", "She")])
    assert source.notes == (
        "Fields of the forget entries that are not read: id, tags.",
        "2 forget texts are blank and left out.",
    )


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_a_line_ends_at_a_line_end_only(mark: str, tmp_path: Path) -> None:
    texts = [f"one{mark}two", "three"]
    lines = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts)
    assert [json.loads(line) for line in lines_of(lines)] == texts
    (tmp_path / "a.jsonl").write_text(lines.replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert read_records(tmp_path / "a.jsonl") == texts
    row = '{"metric":"verbmem","id":"%s","half":"dev","value":1.0}\n'
    (tmp_path / "rows.jsonl").write_text(
        row % f"a{json.dumps(mark, ensure_ascii=False)[1:-1]}b" + row % "c", encoding="utf-8"
    )
    assert set(read_rows(tmp_path / "rows.jsonl").values[Column("verbmem")]) == {f"a{mark}b", "c"}


def prepared(folder: Path, *options: str, **roles: Any) -> tuple[PrepareResult, Path]:
    """A corpus of records given by role."""
    out = folder / "out"
    out.mkdir(parents=True)
    for role, records in roles.items():
        (folder / f"{role}.json").write_bytes(entry(*records))
    paths = {role: (str(folder / f"{role}.json"),) for role in roles}
    given = dict(option.split("=") for option in options)
    spec = PrepareSpec.model_validate(
        paths | {"vocab_size": 300, "answer_tokens": 4, "text_tokens": 64} | given
    )
    return prepare.run(spec, {}, out, silent), out


SHORT = [
    {"question": f"Which town did the old writer {k} leave?", "answer": f"Town {k}"}
    for k in range(14)
]


def test_the_same_short_questions_on_both_sides_are_said_and_dropped(tmp_path: Path) -> None:
    shared = [
        {"question": p["question"].upper().replace("?", " ?"), "answer": "Another"}
        for p in SHORT[:3]
    ]
    roles = {"forget": SHORT, "retain": pairs(0, 20) + shared}
    card, _ = prepared(tmp_path / "a", **roles)
    assert card.overlapping_texts == {"retain1": 2, "retain2": 1, "holdout": 0, "questions": 3}
    card, out = prepared(tmp_path / "b", "drop_overlap=true", **roles)
    kept = json.dumps([json.loads(p.read_text()) for p in out.glob("*/retain*.json")])
    assert "OLD WRITER" not in kept
    assert "gate 19" in kept


def test_the_same_short_texts_are_refused_as_holdout(tmp_path: Path) -> None:
    short = [f"Lantern {k} was sold." for k in range(40)]
    with pytest.raises(UserError, match="1 of 3 holdout texts"):
        prepared(
            tmp_path,
            forget=[story(0), *short],
            retain=[story(1000)],
            holdout=["lantern 7 was SOLD", story(5000, 2)],
        )


def test_questions_that_are_held_out_may_not_be_retained_ones(tmp_path: Path) -> None:
    twice = pairs(0, 20)
    with pytest.raises(UserError, match="2 of 4 holdout texts stand in the retain text"):
        prepared(tmp_path, "holdout_share=0.2", forget=SHORT, retain=[*twice[:18], *twice[:2]])


def test_an_answer_on_both_sides_and_repeated_items_are_said(tmp_path: Path) -> None:
    answer = {"answer": "At the quiet harbour of Aldwick"}
    forget = [*SHORT, SHORT[0], {"question": "Where is it?", **answer}]
    card, out = prepared(
        tmp_path,
        forget=forget,
        retain=[*pairs(0, 12), {"question": "Where do they live?", **answer}],
    )
    assert list(card.notes) == [
        "1 retain questions have an answer that is one of the forget side too."
    ]
    assert card.repeated == {"forget texts": 1}
    shown = [r["question"] for r in json.loads((out / "knowmem/forget_qa_icl.json").read_text())]
    assert not set(shown) & {
        r["question"] for r in json.loads((out / "knowmem/forget_qa.json").read_text())
    }


def test_too_little_or_repeated_calibration_text_is_said(tmp_path: Path) -> None:
    _, out = prepared(tmp_path, forget=[story(0)], retain=[*[story(1000, 3)] * 3, story(2000)])
    tokenizer = open_tokenizer(str(out / "tokenizer"))
    few, same = transform.calibration(TransformSpec(use="gptq"), out, tokenizer)[1].warnings
    assert "tokens of calibration text where up to 8192 are asked for" in few
    assert same.endswith("calibration texts say what another one says")
    enough = transform.calibration(
        TransformSpec(use="gptq", calibration_samples=4, calibration_tokens=32), out, tokenizer
    )[1]
    assert enough.warnings == (same,)


def test_holdout_text_that_is_all_dropped_is_absent_with_the_reason(tmp_path: Path) -> None:
    card, _ = prepared(
        tmp_path,
        "drop_overlap=true",
        forget=[story(0)],
        retain=[story(1000)],
        holdout=[story(1000)],
    )
    assert card.absent["privleak"] == "all holdout texts repeat what the model reads"


def test_japanese_text_overlaps_in_twenty_six_characters(tmp_path: Path) -> None:
    told = "静かな港町の古い灯台のそばで七人の仕立屋が銀の針を数えていた"
    holdout = [f"むかし、{told[:27]}とさ", f"むかし、{told[:20]}とさ"]
    forget = [f"{told}。{k}番目の夜" * 3 for k in range(9)]
    with pytest.raises(UserError, match="1 of 2 holdout texts share"):
        prepared(tmp_path, forget=forget, retain=["別の話がここにある。" * 9], holdout=holdout)


def test_an_unprepared_folder_says_how_to_prepare_it(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(story(0))
    (tmp_path / "model").mkdir()
    said = CliRunner().invoke(
        main,
        [
            "measure",
            str(tmp_path / "model"),
            "--data",
            str(tmp_path / "texts"),
            "--store",
            str(tmp_path / "s"),
        ],
    )
    assert said.exit_code == 2
    assert "is no prepared corpus" in said.output
    assert "remnant prepare --forget" in said.output


@pytest.mark.parametrize("wrong", [None, "a", [None], [" "], []])
def test_tofus_wrong_answers_are_texts(wrong: Any, tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b", "perturbed_answer": ["c"]}
    for name in (
        "forget10",
        "retain90",
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    assert tofu.read(tmp_path).qa["forget"] == [("a", "b")]
    (tmp_path / "retain_perturbed.json").write_text(json.dumps(row | {"perturbed_answer": wrong}))
    with pytest.raises(
        UserError, match=r"Entry 1 of .*retain_perturbed\.json has no list of perturbed answers"
    ):
        tofu.read(tmp_path)
    (tmp_path / "retain_perturbed.json").write_text(
        json.dumps(row | {"paraphrased_answer": wrong if wrong != "a" else 1})
    )
    with pytest.raises(UserError, match="no text as paraphrased answer"):
        tofu.read(tmp_path)


def test_a_folder_of_muses_layout_is_read_as_it_is(tmp_path: Path) -> None:
    found = layout.read(
        muse(
            tmp_path,
            raw__retain1=["a", ""],
            knowmem__forget_qa=[{"question": "a", "answer": "b", "id": 1}],
        )
    )
    assert found.files["raw/retain1"] == ["a", ""]
    assert found.files["knowmem/forget_qa"] == [{"question": "a", "answer": "b", "id": 1}]
