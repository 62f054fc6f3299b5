"""A dry run says what prepare would do, and writes nothing."""

from pathlib import Path

from tests.test_shapes import FORGET, RETAIN, called, lines, named, table


def test_a_dry_run_says_what_prepare_would_do_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "forget"
    folder.mkdir()
    (folder / "a.csv").write_bytes(table(FORGET, ","))
    (folder / "b.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "retain.jsonl").write_bytes(lines([*named(RETAIN, "prompt", "response"), "text"]))
    files = ("--forget", folder, "--retain", tmp_path / "retain.jsonl")
    before = sorted(tmp_path.rglob("*"))
    result = called(tmp_path, *files, "--dry-run")
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.rglob("*")) == before
    for part in (
        "forget a.csv: 13 plain; fields id (not read), question, answer\n",
        "retain retain.jsonl: 14 prompt and response, 1 string; fields prompt, response\n",
        "forget: 13 questions with answers of 5 to 10 words, median 10\n",
        "retain: 14 questions with answers of 6 to 6 words, median 6\n",
        "Not read for forget: 1 files: b.xlsx (a table (XLSX)).",
        "Note: Fields of the forget entries that are not read: id.",
        "Note: 1 retain text is left out, since the forget set holds questions only.",
        "Nothing was written.",
    ):
        assert part in result.stdout, result.stdout
    real = called(tmp_path, *files)
    said = real.stdout.split("\n")[1:-1]
    assert said == result.stdout.split("\n")[-len(said) - 2 : -2]


def test_a_dry_run_refuses_what_prepare_refuses(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The mill burned down in the night of the great storm. " * 20)
    result = called(
        tmp_path, "--forget", tmp_path / "a.txt", "--retain", tmp_path / "a.txt", "--dry-run"
    )
    assert result.exit_code == 2
    assert "All of the retain text repeats the forget text" in result.output


def test_a_dry_run_counts_before_it_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "forget"
    folder.mkdir()
    (folder / "a.txt").write_text("Hm.")
    (folder / "b.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "retain.txt").write_text("What stays is longer, but not by much either.")
    files = ("--forget", folder, "--retain", tmp_path / "retain.txt")
    result = called(tmp_path, *files, "--dry-run")
    assert result.exit_code == 2
    told = result.output.splitlines()
    refusal = next(i for i, line in enumerate(told) if "too short to cut a single prompt" in line)
    for part in (
        "forget: 1 texts of 1 to 1 words, median 1",
        "retain: 1 texts of 9 to 9 words, median 9",
        "Not read for forget: 1 files: b.xlsx (a table (XLSX)).",
    ):
        assert part in told[:refusal], result.output
    assert "the longest of 1 texts has" in told[refusal]
