"""Texts: the standard library's sources and token files of the user's."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.interfaces import DataShard
from workloads.gpt import GPT
from workloads.lstm import LSTM
from workloads.text import library_files, standard_library, token_file, windows

if TYPE_CHECKING:
    from pathlib import Path


def write_library(root: Path, count: int = 12) -> dict[str, bytes]:
    files = {f"module_{index:02}.py": f"x = {index}\n".encode() for index in range(count)}
    files["package/__init__.py"] = b"# package\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return files


def write_tokens(path: Path, ids: list[int] | np.ndarray, dtype: str = "uint16", header: int = 0) -> str:
    path.write_bytes(b"\7" * header + np.asarray(ids, dtype=dtype).tobytes())
    return str(path)


def test_library_files_are_sorted_and_leave_out_packages_tests_and_build_settings(tmp_path: Path) -> None:
    files = write_library(tmp_path)
    for name in ("site-packages/a.py", "test/b.py", "package/tests/c.py", "_sysconfigdata__linux.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left out")
    found = [path.relative_to(tmp_path).as_posix() for path in library_files(tmp_path)]
    assert found == sorted(files)


def test_every_tenth_file_is_held_out_and_the_digest_is_of_all(tmp_path: Path) -> None:
    files = write_library(tmp_path)
    text = standard_library(tmp_path)
    ordered = [files[name] for name in sorted(files)]
    assert text.held_out.tobytes() == ordered[9]
    assert text.train.tobytes() == b"".join(ordered[:9] + ordered[10:])
    assert text.facts["corpus_sha256"] == hashlib.sha256(b"".join(ordered)).hexdigest()
    assert text.facts["corpus_bytes"] == sum(map(len, ordered))
    assert text.facts["corpus_files"] == 13


def test_corpus_ends_with_the_file_that_reaches_the_cap(tmp_path: Path) -> None:
    files = write_library(tmp_path)
    first_eleven = sum(len(files[name]) for name in sorted(files)[:11])
    assert standard_library(tmp_path, maximum_bytes=first_eleven).facts["corpus_files"] == 11
    assert standard_library(tmp_path, maximum_bytes=first_eleven - 1).facts["corpus_files"] == 11


def test_library_without_sources_asks_for_a_token_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a token file") as raised:
        standard_library(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_own_library_is_megabytes_of_real_source() -> None:
    text = standard_library()
    assert text.train.size > 4_000_000
    assert text.held_out.size > 200_000
    assert b"def __init__(self" in text.train.tobytes()


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(0, 255), min_size=2, max_size=50),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "int32", "int64"]),
    header=st.sampled_from([0, 8, 1024]),
)
def test_token_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], dtype: str, header: int
) -> None:
    path = tmp_path_factory.mktemp("tokens") / "ids.bin"
    write_tokens(path, ids, dtype, header)
    text = token_file(path, dtype, header)
    assert np.concatenate([text.train, text.held_out]).tolist() == ids
    assert text.held_out.size == max(1, len(ids) // 10)
    assert text.facts["corpus_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert text.bytes_per_token == (1.0 if dtype == "uint8" else None)
    assert isinstance(text.train.base, np.memmap) or isinstance(text.train, np.memmap)


def test_npy_file_brings_its_own_dtype(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(20, dtype=np.int32))
    text = token_file(tmp_path / "ids.npy", dtype="uint8")
    assert text.train.tolist() == list(range(18))
    assert text.facts["corpus_dtype"] == "int32"


@pytest.mark.parametrize(
    ("content", "dtype", "header", "complaint"),
    [
        (None, "uint16", 0, "cannot be read: No such file"),
        (b"", "uint16", 0, "no whole number of uint16"),
        (b"abc", "uint16", 0, "3 bytes after the header of 0"),
        (b"abcd", "uint16", 8, "0 bytes after the header of 8"),
        (b"ab", "uint16", 0, "holds 1 tokens"),
    ],
)
def test_unusable_token_file_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes | None, dtype: str, header: int, complaint: str
) -> None:
    path = tmp_path / "ids.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as raised:
        GPT(data=str(path), data_dtype=dtype, data_header_bytes=header)
    assert str(path) in str(raised.value)


def test_folder_as_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|no whole number"):
        GPT(data=str(tmp_path))


@pytest.mark.parametrize(
    ("array", "complaint"),
    [(np.zeros((4, 4), np.uint16), r"uint16 of shape \(4, 4\)"), (np.zeros(9, np.float32), "float32")],
)
def test_npy_file_of_another_shape_or_type_is_refused(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(ValueError, match=complaint):
        token_file(tmp_path / "ids.npy")


def test_file_that_only_claims_to_be_npy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.npy").write_bytes(b"not an array at all")
    with pytest.raises(ValueError, match=r"ids\.npy: is not a readable \.npy file"):
        token_file(tmp_path / "ids.npy")


def test_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", np.zeros(9))
    (tmp_path / "ids.npz").rename(tmp_path / "ids.npy")
    with pytest.raises(ValueError, match="holds an archive"):
        token_file(tmp_path / "ids.npy")


@pytest.mark.parametrize("dtype", ["float32", "text", "uint17"])
def test_type_that_is_no_integer_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match="expected an integer type"):
        GPT(data=write_tokens(tmp_path / "ids.bin", list(range(200))), data_dtype=dtype)


def test_text_shorter_than_a_sequence_is_refused_with_both_lengths(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "ids.bin", [1] * 600)
    with pytest.raises(ValueError, match=r"540 tokens to train on and 60 held out.*sequence of 64"):
        GPT(data=path)
    assert GPT(data=path, sequence_length=32).traits.size("nano").tokens_per_sample == 32


@pytest.mark.parametrize("kind", [GPT, LSTM])
def test_token_ids_beyond_the_vocabulary_are_refused_naming_file_id_and_range(
    tmp_path: Path, kind: type[GPT | LSTM]
) -> None:
    path = write_tokens(tmp_path / "ids.bin", [300] * 2000)
    workload = kind(data=path)
    with pytest.raises(ValueError, match=r"ids\.bin: holds token id 300, but the model has ids 0 … 255"):
        next(workload.batches(DataShard(0, 1, 2, 1, 0)))


def test_negative_token_id_is_refused() -> None:
    with pytest.raises(ValueError, match="token id -1"):
        windows(np.array([0, -1, 2], dtype=np.int32), np.array([0]), 3, 10, "x")


def test_tokens_of_a_file_are_what_the_model_reads_and_is_judged_on(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "ids.bin", np.arange(4000) % 50000)
    workload = GPT("small", data=path, sequence_length=16)
    tokens = next(workload.batches(DataShard(0, 1, 4, 1, 0)))["tokens"]
    assert tokens.shape == (4, 17)
    assert torch.equal(tokens[:, 1:], tokens[:, :-1] + 1)
    assert tokens.max() < 3600
    assert workload.traits.size("small").target is None


@pytest.mark.parametrize(("dtype", "bytes_known"), [("uint8", True), ("uint16", False)])
def test_bits_a_byte_are_reported_for_bytes_alone(tmp_path: Path, dtype: str, *, bytes_known: bool) -> None:
    path = write_tokens(tmp_path / "ids.bin", np.arange(2000) % 200, dtype)
    workload = LSTM(data=path, data_dtype=dtype)
    model = workload.build()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            workload.initialise(name, tensor, 0)
        values = workload.evaluate(model.eval())
    assert ("validation_bits_per_byte" in values) == bytes_known
    if bytes_known:
        assert values["validation_bits_per_byte"] == pytest.approx(values["validation_loss"] / math.log(2))
