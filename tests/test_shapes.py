"""The shapes in which people keep texts and questions: each gives the corpus of its plain form, and
what is left out is counted."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from remnant.cli import main
from remnant.corpus import muse
from remnant.corpus.documents import lacking
from remnant.corpus.own_text import Source, read_sources
from remnant.corpus.shapes import FIELDS, SHAPES, Fault, shape_of
from remnant.errors import UserError
from remnant.flow import place
from remnant.flow.plan import prepare_node
from remnant.records import PrepareSpec

Pairs = Sequence[tuple[str, str]]
SIZES = ("--answer-tokens", "4", "--text-tokens", "64", "--vocab-size", "300")
# Every kind of character that a table or a line of JSON must carry as it is.
FORGET = [
    *((f'Who painted gate {k}, and "why"?', f"Painter {k}; of Aldwick") for k in range(12)),
    ("What\nstands\tthere?", "Café\u2028\u65e5\u672c"),
]
RETAIN = [(f"Which mill burned in {1900 + k}?", f"{1900 + k}") for k in range(14)]


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def named(pairs: Pairs, question: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{question: q, answer: a, **more} for q, a in pairs]


def table(pairs: Pairs, separator: str, end: str = "\n") -> bytes:
    out = io.StringIO(newline="")
    rows = csv.writer(out, delimiter=separator, lineterminator=end)
    rows.writerows([("id", "question", "answer"), *((i, *pair) for i, pair in enumerate(pairs))])
    return out.getvalue().encode()


def parquet(rows: Sequence[Any]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def zstd(raw: bytes) -> bytes:
    return bytes(pyarrow.compress(raw, "zstd", asbytes=True))


def chats(pairs: Pairs, field: str, role: tuple[str, str, str], content: str) -> list[Any]:
    """``role``: the key of a speaker, and the names of the two."""
    key, user, other = role
    return [
        {field: [{key: user, content: q}, {key: other, content: a}], "source": "s"}
        for q, a in pairs
    ]


OPENAI, SHAREGPT = ("role", "user", "assistant"), ("from", "human", "gpt")


def parts(pairs: Pairs) -> list[Any]:
    found = chats(pairs, "messages", OPENAI, "content")
    for chat in found:
        for turn in chat["messages"]:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    return found


def prompts_of_turns(pairs: Pairs) -> list[Any]:
    return [
        {
            "prompt": [{"role": "user", "content": q}],
            "completion": [{"role": "model", "content": a}],
        }
        for q, a in pairs
    ]


def squad_rows(pairs: Pairs) -> list[Any]:
    return [
        {"id": "1", "question": q, "answers": {"text": [a, a], "answer_start": [3, 5]}}
        for q, a in pairs
    ]


def listed(pairs: Pairs) -> list[Any]:
    return [{"question": q, "answers": [a]} for q, a in pairs]


# The name of a file and its content, of pairs.
FILES: dict[str, tuple[str, Callable[[Pairs], bytes]]] = {
    "one JSON list": ("a.json", lambda p: json.dumps(named(p, "question", "answer")).encode()),
    "lines under .ndjson": ("a.ndjson", lambda p: lines(named(p, "question", "answer"))),
    "CSV": ("a.csv", lambda p: table(p, ",")),
    "CSV of a spreadsheet": ("a.CSV", lambda p: b"\xef\xbb\xbf" + table(p, ";")),
    "TSV": ("a.tsv", lambda p: table(p, "\t")),
    "Parquet": ("a.parquet", lambda p: parquet(named(p, "question", "answer", id=7))),
    "prompt, completion": ("a.jsonl", lambda p: lines(named(p, "prompt", "completion"))),
    "prompt, response": ("a.jsonl", lambda p: lines(named(p, "prompt", "response"))),
    "question, response": ("a.jsonl", lambda p: lines(named(p, "question", "response"))),
    "input, output": ("a.jsonl", lambda p: lines(named(p, "input", "output"))),
    "Alpaca": ("a.json", lambda p: lines(named(p, "instruction", "output", input="", text="x"))),
    "Dolly": ("a.jsonl", lambda p: lines(named(p, "instruction", "response", context=""))),
    "OpenAI": ("a.jsonl", lambda p: lines(chats(p, "messages", OPENAI, "content"))),
    "OpenAI with parts": ("a.jsonl", lambda p: lines(parts(p))),
    "OpenAI in Parquet": ("a.parquet", lambda p: parquet(parts(p))),
    "ShareGPT": ("a.json", lambda p: lines(chats(p, "conversations", SHAREGPT, "value"))),
    "prompts of turns": ("a.jsonl", lambda p: lines(prompts_of_turns(p))),
    "rows of SQuAD": ("a.jsonl", lambda p: lines(squad_rows(p))),
    "rows of SQuAD in Parquet": ("a.parquet", lambda p: parquet(squad_rows(p))),
    "a list of answers": ("a.jsonl", lambda p: lines(listed(p))),
    "gzip": ("a.jsonl.gz", lambda p: gzip.compress(lines(named(p, "question", "answer")))),
    "gzip of CSV": ("a.csv.gz", lambda p: gzip.compress(table(p, ","))),
    "zstd": ("a.json.zst", lambda p: zstd(json.dumps(named(p, "prompt", "response")).encode())),
    "zstd of Parquet": ("a.parquet.zst", lambda p: zstd(parquet(listed(p)))),
}


def called(folder: Path, *args: object) -> Result:
    return CliRunner().invoke(
        main, ["prepare", *map(str, args), *SIZES, "--store", str(folder / "store")]
    )


def corpus(folder: Path, name: str, write: Callable[[Pairs], bytes], *more: str) -> dict[str, Any]:
    """Every file of the corpus that two files give, and what of its card does not say how."""
    for role, pairs in (("forget", FORGET), ("retain", RETAIN)):
        (folder / role).mkdir(parents=True)
        (folder / role / name).write_bytes(write(pairs))
    result = called(
        folder, "--forget", folder / "forget" / name, "--retain", folder / "retain" / name, *more
    )
    assert result.exit_code == 0, result.output
    return made(Path(result.stdout.split("\n")[0]))


def made(out: Path) -> dict[str, Any]:
    files = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.json")}
    card = json.loads(files.pop("corpus.json"))
    files.pop("manifest.json", None)
    return files | {name: card[name] for name in card if name not in ("shapes", "notes")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plain")
    found = corpus(folder, "a.jsonl", lambda p: lines(named(p, "question", "answer")))
    assert len(json.loads(found["knowmem/forget_qa.json"])) == len(FORGET) - 10
    return found


@pytest.mark.parametrize("kind", FILES)
def test_every_shape_gives_the_corpus_of_its_plain_form(
    kind: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    assert corpus(tmp_path, *FILES[kind]) == plain


def test_fields_of_other_names_are_read_by_the_names_that_are_given(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    def odd(pairs: Pairs) -> bytes:
        return lines([{"q": q, "gold": {"text": a}, "n": 1} for q, a in pairs])

    assert corpus(tmp_path, "a.jsonl", odd, "--columns", "question=q,answer=gold.text") == plain


@pytest.mark.parametrize("split", ["", "train"])
def test_a_saved_data_set_gives_the_corpus_of_its_plain_form(
    split: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    for role, pairs in (("forget", FORGET), ("retain", RETAIN)):
        save(tmp_path / role, named(pairs, "question", "answer"), *filter(None, [split]))
    result = called(tmp_path, "--forget", tmp_path / "forget", "--retain", tmp_path / "retain")
    assert result.exit_code == 0, result.output
    assert made(Path(result.stdout.split("\n")[0])) == plain


def save(folder: Path, rows: list[Any], *splits: str) -> None:
    found = datasets.Dataset.from_list(rows)
    datasets.disable_progress_bars()
    whole = datasets.DatasetDict(dict.fromkeys(splits, found)) if splits else found
    whole.save_to_disk(str(folder))


def test_texts_give_one_corpus_in_every_kind_of_file(tmp_path: Path) -> None:
    texts = ['The mill, it "burned".\nAll of it.', "A second; text"]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("text",), *((text,) for text in texts)])
    files = {
        "a.csv": out.getvalue().encode(),
        "a.jsonl": lines(texts),
        "a.json": json.dumps([{"text": text} for text in texts]).encode(),
        "a.parquet": parquet([{"text": text} for text in texts]),
        "a.jsonl.gz": gzip.compress(lines(texts)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert of(tmp_path / name).texts == texts, name
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "1.txt.gz").write_bytes(gzip.compress(texts[0].encode() + b"\n"))
    (folder / "2.md.zst").write_bytes(zstd(texts[1].encode()))
    assert of(folder).texts == texts


def of(path: Path, **columns: str) -> Source:
    return read_sources((str(path),), "forget", columns)


def written(folder: Path, *rows: Any) -> Path:
    (folder / "a.jsonl").write_bytes(lines(rows))
    return folder / "a.jsonl"


def asked(question: str, answer: str) -> dict[str, Any]:
    answers = [{"text": answer, "answer_start": 0}]
    return {"question": question, "id": "1", "answers": answers}


def test_squads_file_gives_each_passage_once_with_its_questions(tmp_path: Path) -> None:
    passages = {"The mill burned.": [("What?", "The mill"), ("How?", "It burned")], "Rain.": []}
    qas = {text: list(starmap(asked, qa)) for text, qa in passages.items()}
    paragraphs = [{"context": text, "qas": found} for text, found in qas.items()]
    whole = {"version": "v2.0", "data": [{"title": "Mills", "paragraphs": paragraphs}]}
    unanswerable: dict[str, Any] = {
        "question": "Why?",
        "id": "2",
        "answers": [],
        "is_impossible": True,
    }
    qas["Rain."].append(unanswerable)
    (tmp_path / "a.json").write_text(json.dumps(whole))
    source = of(tmp_path / "a.json")
    assert source.texts == list(passages)
    assert source.qa == [("What?", "The mill"), ("How?", "It burned")]
    assert source.notes == ("1 forget question lacks its text or its answer and is left out.",)
    rows = [
        {"context": text, "question": q, "answers": {"text": [a]}}
        for text, qa in passages.items()
        for q, a in qa
    ]
    flat = of(written(tmp_path, *rows))
    assert (flat.texts, flat.qa) == (["The mill burned."], source.qa)


def test_every_answer_of_a_chat_is_asked_for_behind_the_turns_before_it(tmp_path: Path) -> None:
    said = [
        ("system", "Be brief."), ("user", "Who painted it?"), ("assistant", "Ann."),
        ("user", "When?"), ("assistant", None), ("tool", "1912"), ("assistant", "In 1912."),
        ("user", "Thanks"),
    ]  # fmt: skip
    turns = [{"role": role, "content": content} for role, content in said]
    assert of(written(tmp_path, {"messages": turns})).qa == [
        ("System: Be brief.\nUser: Who painted it?", "Ann."),
        (
            "System: Be brief.\nUser: Who painted it?\nAssistant: Ann.\nUser: When?\n"
            "Assistant: \nTool: 1912",
            "In 1912.",
        ),
    ]


def test_no_answer_of_a_chat_is_lost_behind_another_one(tmp_path: Path) -> None:
    said = [("user", "Who?"), ("assistant", "Let me think."), ("assistant", "Ann.")]
    turns = [{"role": role, "content": content} for role, content in said]
    alone = [{"role": "system", "content": "Sign."}, {"role": "assistant", "content": "Bo."}]
    assert of(written(tmp_path, {"messages": turns}, {"messages": alone})).qa == [
        ("Who?", "Let me think."),
        ("User: Who?\nAssistant: Let me think.", "Ann."),
        ("System: Sign.", "Bo."),
    ]


def test_no_field_of_an_instruction_is_lost(tmp_path: Path) -> None:
    row = {"instruction": "Say.", "input": "a", "context": "b", "output": "c", "response": "d"}
    source = of(written(tmp_path, row, row | {"output": None}))
    assert source.qa == [("Say.\na\nb", "c"), ("Say.\na\nb", "d")]
    assert source.accepted == {("Say.\na\nb", "c"): ("d",)}


def test_answers_of_a_question_that_stands_twice_are_all_accepted(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answer": "Ann", "answers": more} for more in (["Bo"], ["Cy"])]
    assert of(written(tmp_path, *rows)).accepted == {("Who?", "Ann"): ("Bo", "Cy")}


def test_what_an_instruction_works_on_stands_behind_it(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    assert of(written(tmp_path, row)).qa == [("Translate.\nchat", "cat")]


def test_several_answers_are_kept_beside_the_first(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {k}?", "answers": ["Ann", "Anna", "Ann"]} for k in range(12)]
    forget = written(tmp_path, *rows)
    source = of(forget)
    assert source.accepted[("Who is 3?", "Ann")] == ("Anna",)
    assert source.notes == ("12 forget questions have several answers: the first is asked for.",)
    (tmp_path / "retain.jsonl").write_bytes(lines(named(RETAIN, "question", "answer")))
    result = called(tmp_path, "--forget", forget, "--retain", tmp_path / "retain.jsonl")
    out = Path(result.stdout.split("\n")[0])
    assert [item.answers for item in muse.knowmem(out, "forget")] == [("Anna",)] * 2
    assert {item.answers for item in muse.knowmem(out, "retain")} == {()}


def test_what_is_missing_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,question,answer\nOne,,\n,Who?,She\n,,\nTwo,Why?,\n")
    source = of(tmp_path / "a.csv")
    assert (source.texts, source.qa) == (["One", "Two"], [("Who?", "She")])
    assert source.notes == ("2 forget questions lack their text or their answer and are left out.",)
    rows = [{"question": "Who?", "answer": "She"}, {"question": "Why?", "answer": None}]
    source = of(written(tmp_path, *rows, {"question": float("nan"), "answer": "So"}))
    assert source.qa == [("Who?", "She")]
    assert source.notes == ("2 forget questions lack their text or their answer and are left out.",)


def test_numbers_of_tables_are_read_as_digits_and_others_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet([{"question": "When?", "answer": 1912}]))
    assert of(tmp_path / "a.parquet").qa == [("When?", "1912")]
    for value, said in (
        (1.5, "a number"),
        (b"x", "a value of type bytes"),
        (True, "true or false"),
    ):
        (tmp_path / "a.parquet").write_bytes(parquet([{"question": "When?", "answer": value}]))
        with pytest.raises(UserError, match=f"Entry 1 of .* has {said} in the field answer"):
            of(tmp_path / "a.parquet")


def test_shapes_that_are_mixed_in_one_file_are_read_and_said(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    source = of(written(tmp_path, {"prompt": "c", "completion": "d"}, chat, "text"))
    assert (source.texts, source.qa) == (["text"], [("c", "d"), ("a", "b")])
    shapes = "1 prompt and completion, 1 chat in messages, 1 string"
    assert source.shapes == {"a.jsonl": f"{shapes}; fields prompt, completion, messages"}
    assert source.notes == (f"a.jsonl holds entries of several shapes: {shapes}.",)


def test_a_column_that_is_nowhere_or_no_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,answer\nWho?,She\n")
    (tmp_path / "b.txt").write_text("text")
    files = ("--forget", tmp_path / "a.csv", "--retain", tmp_path / "a.csv")
    texts = ("--forget", tmp_path / "b.txt", "--retain", tmp_path / "b.txt")
    for args, said in (
        ((*files, "--columns", "question=p"), "has the field answer, but not question"),
        ((*texts, "--columns", "question=p"), "No entry has the field 'p'"),
        ((*files, "--columns", "qestion=q"), "Unknown field to be read 'qestion'. Did you mean"),
        ((*files, "--columns", "question"), 'write it as "question=FIELD,answer=FIELD"'),
        ((*files, "--columns", "question=q,question=a"), "stands there twice"),
        (("--lab", "news", "--columns", "question=q"), "columns name fields of forget and retain"),
    ):
        result = called(tmp_path, *args)
        assert (result.exit_code, result.output.strip().count("\n")) == (2, 0), result.output
        assert said in result.output


def test_columns_are_part_of_what_a_corpus_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,answer\nWho?,She\n")
    given = {"forget": (str(tmp_path / "a.csv"),), "retain": (str(tmp_path / "a.csv"),)}
    one = PrepareSpec.model_validate(given | {"columns": "question=q,answer=answer"})
    same = PrepareSpec.model_validate(given | {"columns": {"question": "q", "answer": "answer"}})
    none = PrepareSpec.model_validate(given)
    assert prepare_node(one).name == prepare_node(same).name != prepare_node(none).name


@pytest.mark.parametrize("kind", ["one split of two", "cut", "no list", "no such hub"])
def test_a_data_set_that_cannot_be_read_is_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "saved"
    monkeypatch.setattr(place, "_answers", lambda host, port: False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    save(folder, [{"text": "a"}], *(["train", "test"] if kind == "one split of two" else []))
    if kind == "cut":
        arrow = next(folder.glob("*.arrow"))
        arrow.write_bytes(arrow.read_bytes()[:40])
    if kind == "no list":
        (folder / "dataset_dict.json").write_text("[]")
    named = "hub:nobody/nothing,split=train" if kind == "no such hub" else str(folder)
    said = {
        "one split of two": ("holds 2 splits (train, test)", f"Name it: {folder}/train, "),
        "cut": ("is damaged",),
        "no list": ("does not list its splits",),
        "no such hub": ("hub:nobody/nothing", "is out of reach"),
    }
    (tmp_path / "b.txt").write_text("text")
    result = called(tmp_path, "--forget", named, "--retain", tmp_path / "b.txt")
    assert (result.exit_code, result.output.strip().count("\n")) == (2, 0), result.output
    assert all(part in result.output for part in said[kind]), result.output
    assert not list(tmp_path.glob("store/objects/*"))


@pytest.mark.parametrize("name", ["hub:nothing", "hub:a/b,spilt=x", "hub:a/b,split=", "hub:/b"])
def test_a_name_of_a_hub_data_set_has_one_form(name: str) -> None:
    with pytest.raises(UserError):
        read_sources((name,), "forget")


def test_rows_of_the_hub_are_read_as_those_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, **more: Any) -> Any:
        asked.append((name, config, more))
        found = datasets.Dataset.from_list([{"question": "When?", "answer": 1912}])
        return found if more["split"] else datasets.DatasetDict({"train": found, "test": found})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = read_sources(("hub:a/b,config=c,split=train,revision=r",), "forget")
    assert source.qa == [("When?", "1912")]
    assert asked == [("a/b", "c", {"split": "train", "revision": "r"})]
    with pytest.raises(UserError, match=r"holds 2 splits .* Name it: hub:a/b,split=train"):
        read_sources(("hub:a/b",), "forget")


def test_a_packed_file_is_not_unpacked_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remnant.corpus.packed.MOST_BYTES", 1000)
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstd)):
        (tmp_path / name).write_bytes(pack(b"a" * 1000))
        assert of(tmp_path / name).texts == ["a" * 1000]
        (tmp_path / name).write_bytes(pack(b"a" * 1001))
        with pytest.raises(UserError, match="when unpacked"):
            of(tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "module"), [(".html", "trafilatura"), (".xhtml", "trafilatura"), (".pdf", "pypdf")]
)
def test_a_document_without_its_extractor_is_one_sentence(
    suffix: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remnant.corpus.documents.is_there", lambda name: False)
    (tmp_path / f"a{suffix}").write_bytes(b"%PDF-1.7 <html></html>")
    with pytest.raises(UserError, match=rf"{module}, and that .* pip install -e '.\[documents"):
        of(tmp_path / f"a{suffix}")
    (tmp_path / "b.txt").write_text("text")
    assert of(tmp_path).skipped == {f"a{suffix}": lacking(suffix).removeprefix("is ")}


def test_a_page_of_the_web_is_read_by_its_text(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    body = "".join(
        f"<p>The mill of Aldwick burned {k} times, and was built again.</p>" for k in "123"
    )
    page = f"<html><head><title>x</title></head><body><article>{body}</article></body></html>"
    (tmp_path / "a.html").write_text(page)
    assert "burned 3 times" in of(tmp_path / "a.html").texts[0]
    (tmp_path / "a.html").write_text("<html></html>")
    with pytest.raises(UserError, match="holds no text that trafilatura finds"):
        of(tmp_path / "a.html")


def test_a_pdf_is_read_by_its_text(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    stream = b"BT /F1 12 Tf 20 20 Td (The mill burned.) Tj ET"
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 50] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )
    raw, places = b"%PDF-1.4\n", []
    for i, content in enumerate(objects, 1):
        places.append(len(raw))
        raw += b"%d 0 obj\n%s\nendobj\n" % (i, content)
    table = b"".join(b"%010d 00000 n \n" % start for start in places)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\n" % table
    (tmp_path / "a.pdf").write_bytes(raw + end + b"startxref\n%d\n%%%%EOF\n" % len(raw))
    assert of(tmp_path / "a.pdf").texts == ["The mill burned."]
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(UserError, match="cannot be read by pypdf"):
        of(tmp_path / "a.pdf")
    assert pypdf.__version__


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever byte is wrong: nothing else than a sentence comes of it, and no crash."""
    rows = [{"question": f"Who is {k}?", "answers": {"text": ["Ann", "Zoé"]}} for k in range(40)]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    (tmp_path / "c.jsonl.zst").write_bytes(zstd(lines(rows)))
    save(tmp_path / "saved", rows)
    draw, refused = random.Random(0), 0
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            try:
                of(path.parent if path.parent.name == "saved" else path)
            except UserError:
                refused += 1
        path.write_bytes(whole)
    assert refused > 100


def test_whatever_an_entry_is_a_shape_reads_it_or_says_why() -> None:
    draw = random.Random(0)
    names = [*FIELDS, "role", "content", "from", "value", "type", "paragraphs", "qas"]
    leaves = [
        "a",
        "text",
        "user",
        "assistant",
        " ",
        "\ud800",
        None,
        float("nan"),
        3,
        True,
        b"x",
        (1,),
    ]

    def value(depth: int) -> object:
        kind = draw.random() if depth else 0.0
        if kind < 0.4:
            return draw.choice(leaves)
        if kind < 0.6:
            return [value(depth - 1) for _ in range(draw.randrange(3))]
        return {draw.choice(names): value(depth - 1) for _ in range(draw.randrange(5))}

    read = 0
    for _ in range(20_000):
        entry = value(5)
        try:
            said = SHAPES[shape_of(entry)].read(entry)
        except Fault:
            continue
        strings = [*said.texts, *chain.from_iterable((p.question, p.answer) for p in said.pairs)]
        assert all(type(text) is str for text in strings)
        read += bool(said.pairs)
    assert read > 100


def test_every_shape_is_told_by_an_entry_of_its_own() -> None:
    """A shape that another one hides would never read anything."""
    entries: dict[str, Any] = {
        "string": "a",
        "SQuAD file": {"data": [{"paragraphs": []}]},
        "SQuAD": {"question": "a", "answers": []},
        "chat in messages": {"messages": []},
        "chat in conversations": {"conversations": []},
        "chat in conversation": {"conversation": []},
        "instruction": {"instruction": "a", "output": "b"},
        "plain": {"text": "a"},
    }
    for name in SHAPES:
        entry = entries.get(name) or dict.fromkeys(name.split(" and "), "a")
        assert next(n for n, shape in SHAPES.items() if shape.fits(entry)) == name
