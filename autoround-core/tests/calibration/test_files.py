# SPDX-License-Identifier: Apache-2.0
import builtins
import importlib
import json
from pathlib import Path

import pytest

from auto_round.calibration import load_calibration
from auto_round.errors import CalibrationError


def load(path, tokenizer, nsamples=3, seqlen=16, **options):
    return load_calibration(path, tokenizer, nsamples=nsamples, seqlen=seqlen, **options)


@pytest.fixture
def texts(words):
    return [words(20, first) for first in (0, 10, 20)]


@pytest.fixture
def expected(tokenizer, texts):
    return load(texts, tokenizer).input_ids.tolist()


# --- documents


def test_a_document_is_cut_into_equal_pieces_by_characters(tmp_path, tokenizer, words):
    text = "\n".join(words(25, first) for first in range(0, 100, 7))
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    tokens = load(path, tokenizer, nsamples=7, seqlen=20)
    size = len(text)
    pieces = [text[i * size // 7 : (i + 1) * size // 7] for i in range(7)]
    by_hand = [tokenizer(piece, add_special_tokens=False)["input_ids"][:20] for piece in pieces]
    assert tokens.input_ids.tolist() == by_hand
    assert tokens.mask.all()
    assert tokens.source == f"{path}: 7 equal pieces, the first 20 tokens of each"
    assert load(str(path), tokenizer, nsamples=7, seqlen=20).fingerprint() == tokens.fingerprint()
    assert load(path, tokenizer, nsamples=7, seqlen=20, pack=True).fingerprint() == tokens.fingerprint()


def test_line_ends_and_byte_order_mark_do_not_count(tmp_path, tokenizer, words):
    text = "\n".join([words(40)] * 4)
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "other.md").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    prints = {load(tmp_path / name, tokenizer).fingerprint() for name in ("unix.txt", "other.md")}
    assert len(prints) == 1


def test_pieces_that_are_too_short_say_what_would_do(tmp_path, tokenizer):
    path = tmp_path / "short.txt"
    path.write_text("w1 " * 200)
    message = r"short.txt\), cut into 10 pieces, gives 20 tokens in the shortest piece, 30 are asked for: pass "
    with pytest.raises(CalibrationError, match=message + r"seqlen=20, nsamples=6 or more text\.") as error:
        load(path, tokenizer, nsamples=10, seqlen=30)
    assert "\n" not in str(error.value)
    assert load(path, tokenizer, nsamples=10, seqlen=20).input_ids.shape == (10, 20)
    assert load(path, tokenizer, nsamples=6, seqlen=30).input_ids.shape == (6, 30)


def test_the_number_of_samples_it_names_is_one_that_works(tmp_path, tokenizer, words):
    path = tmp_path / "uneven.txt"
    path.write_text(words(50) + " " + "x" * 400 + " " + words(90))
    with pytest.raises(CalibrationError, match="nsamples=") as error:
        load(path, tokenizer, nsamples=8, seqlen=15)
    offered = int(str(error.value).partition("nsamples=")[2].split()[0])
    assert load(path, tokenizer, nsamples=offered, seqlen=15).input_ids.shape == (offered, 15)


def test_pieces_too_short_for_anything_ask_for_text(tmp_path, tokenizer):
    path = tmp_path / "tiny.txt"
    path.write_text("w1 w2")
    with pytest.raises(CalibrationError, match=r"gives 0 tokens in the shortest piece.*: pass more text\."):
        load(path, tokenizer, nsamples=10, seqlen=30)


def test_a_document_without_a_tokenizer(tmp_path, words):
    path = tmp_path / "long.txt"
    path.write_text(words(100))
    with pytest.raises(CalibrationError, match="pass a tokenizer"):
        load(path, None)


# --- records


def test_json_lines(tmp_path, tokenizer, texts, expected):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": texts[0], "id": 1}), json.dumps(texts[1]), "", json.dumps({"text": texts[2]})]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    tokens = load(path, tokenizer)
    assert tokens.input_ids.tolist() == expected
    assert tokens.source == f"{path}: 3 samples of at most 16 tokens"
    path.rename(tmp_path / "texts.json")
    assert load(tmp_path / "texts.json", tokenizer).input_ids.tolist() == expected


@pytest.mark.parametrize("wrap", [list, lambda t: [{"text": x} for x in t], lambda t: {"version": 1, "data": t}])
def test_json(tmp_path, tokenizer, texts, expected, wrap):
    path = tmp_path / "texts.JSON"
    path.write_text(json.dumps(wrap(texts)))
    assert load(path, tokenizer).input_ids.tolist() == expected


def test_json_with_tokens_needs_no_tokenizer(tmp_path):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"input_ids": [1, 2, 3]}\n[4, 5]\n')
    assert load(path, None, nsamples=2).input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]


def test_half_a_surrogate_pair_from_json_is_not_the_end(tmp_path, tokenizer):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "w1 \\ud83d w2"}\n')
    assert load(path, tokenizer, nsamples=1, seqlen=4).input_ids.tolist() == [[1, 5, 3, 6]]


@pytest.mark.parametrize("kind", ["text", "only", "dictionary"])
def test_parquet(tmp_path, tokenizer, texts, expected, kind):
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    columns = {
        "text": {"note": ["x"] * 3, "text": texts},
        "only": {"id": [1, 2, 3], "content": texts},
        "dictionary": {"content": arrow.array(texts).dictionary_encode()},
    }[kind]
    path = tmp_path / "texts.parquet"
    parquet.write_table(arrow.table(columns), path)
    assert load(path, tokenizer).input_ids.tolist() == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, r"several columns of strings, none of them called text \(it has: a, b\)"),
        ({"a": [1]}, r"no column of strings \(it has: a\)"),
        ({"text": ["w1", None]}, 'row 2: "text" holds NoneType, not a string'),
    ],
)
def test_parquet_without_texts(tmp_path, tokenizer, columns, message):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "odd.parquet"
    importlib.import_module("pyarrow.parquet").write_table(arrow.table(columns), path)
    with pytest.raises(CalibrationError, match=message):
        load(path, tokenizer)


def test_parquet_without_pyarrow(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "texts.parquet"
    path.write_bytes(b"x")
    monkeypatch.setitem(importlib.sys.modules, "pyarrow", None)
    with pytest.raises(CalibrationError, match=r'needs pyarrow: pip install "autoround-core\[datasets\]"\.'):
        load(path, tokenizer)


def test_damaged_parquet(tmp_path, tokenizer, texts):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "damaged.parquet"
    path.write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(CalibrationError, match="is not a readable parquet file"):
        load(path, tokenizer)
    importlib.import_module("pyarrow.parquet").write_table(
        arrow.table({"text": texts}), path, compression="gzip", use_dictionary=False
    )
    raw = bytearray(path.read_bytes())
    raw[4:120] = b"\xff" * 116
    path.write_bytes(raw)
    with pytest.raises(CalibrationError, match="breaks off after row 0"):
        load(path, tokenizer)


# --- what cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty\."),
        ("a.jsonl", b"", r"a\.jsonl is empty\."),
        ("a.txt", b" \n\n ", r"a\.txt holds nothing but white space\."),
        ("a.jsonl", b"\n\n", r"a\.jsonl\) gives no sample, 3 are asked for"),
        ("a.txt", b"fine\nfine\nb\xe4d\n", r"a\.txt, line 3: not UTF-8 text\."),
        ("a.jsonl", b'"fine"\n"b\xe4d"\n', r"a\.jsonl, line 2: not UTF-8 text\."),
        ("a.jsonl", b'"fine"\n\n{"text": \n', r"a\.jsonl, line 3: not JSON \(Expecting value\)\."),
        ("a.jsonl", b'{"text": "w1"}\n{"content": "w1"}\n', r'line 2 has no "text" field .*\(it has: content\)'),
        ("a.jsonl", b'{"text": null}\n', 'line 1: "text" holds NoneType'),
        ("a.json", b"[1,\n oops]", r"a\.json, line 2: not JSON"),
        ("a.json", b'{"a": [], "b": []}', "an object with 2 lists in it, where one list of texts is expected"),
        ("a.json", b'"text"', r"holds a single str, not a list of texts"),
        ("a.json", b'["w1", {"title": "w"}]', r'a\.json, entry 2 has no "text" field'),
        ("a.csv", b"text\nw1\n", r"calibration files are \.txt, \.md, \.json, \.jsonl, \.parquet\."),
    ],
)
def test_bad_content(tmp_path, tokenizer, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as error:
        load(str(path), tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl:column=a", "./gone", "../gone", "~/gone", "/gone/away"])
def test_no_such_file(tokenizer, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibrationError, match="no such file: "):
        load(name, tokenizer)
    with pytest.raises(CalibrationError, match="no such file: "):
        load(Path(name), tokenizer)


def test_a_directory(tmp_path, tokenizer):
    with pytest.raises(CalibrationError, match="is a directory: pass one file"):
        load(tmp_path, tokenizer)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_must_not_be_read(tmp_path, tokenizer, monkeypatch, name):
    path = tmp_path / name
    path.write_text("w1")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CalibrationError, match=f"{name} cannot be read: Permission denied"):
        load(path, tokenizer)


# --- several


def test_several_files_divide_the_samples(tmp_path, tokenizer, words, texts):
    (tmp_path / "a.txt").write_text(words(100))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, texts)))
    both = f"{tmp_path}/a.txt, {tmp_path}/b.jsonl"
    tokens = load(both, tokenizer, nsamples=5)
    assert tokens.input_ids[:3].tolist() == load(tmp_path / "a.txt", tokenizer, nsamples=3).input_ids.tolist()
    assert tokens.input_ids[3:].tolist() == load(tmp_path / "b.jsonl", tokenizer, nsamples=2).input_ids.tolist()
    assert tokens.source.count("; ") == 1
    assert len(load(both, tokenizer, nsamples=1)) == 1
    with pytest.raises(CalibrationError, match=r"b\.jsonl\) gives 3 samples .* 4 are asked for: pass nsamples=6 or"):
        load(both, tokenizer, nsamples=8, seqlen=8)


def test_a_comma_in_the_name_of_a_file(tmp_path, tokenizer, words):
    path = tmp_path / "a,b.txt"
    path.write_text(words(100))
    assert len(load(str(path), tokenizer)) == 3
