"""The ranks' side of the baton, as far as it needs no world."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import baton
from launch.baton import Line, cores_timed_on, keep_to_cores, scatter, share_of


@given(cores=st.sets(st.integers(0, 500), min_size=1), ranks=st.integers(1, 64))
def test_ranks_share_all_cores_evenly_and_none_twice_while_there_are_enough(cores: set[int], ranks: int) -> None:
    shares = [share_of(sorted(cores), rank, ranks) for rank in range(ranks)]

    assert all(shares)
    if len(cores) >= ranks:
        assert sum(map(len, shares)) == len(cores)
        assert set().union(*shares) == cores
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert all(len(share) == 1 for share in shares)
        assert set().union(*shares) == cores


@given(cores=st.sets(st.integers(0, 500), min_size=1), threads=st.integers(1, 64), ranks=st.integers(1, 4))
def test_a_rank_alone_is_timed_on_as_many_cores_as_it_has_threads(
    cores: set[int], threads: int, ranks: int
) -> None:
    kept = cores_timed_on(sorted(cores), threads, ranks)

    assert set(kept) <= cores
    assert len(kept) == (min(threads, len(cores)) if ranks == 1 else len(cores))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("ranks", [1, 2])
def test_threads_that_are_there_already_keep_to_the_cores_too(ranks: int) -> None:
    before, over, seen = sorted(os.sched_getaffinity(0)), threading.Event(), []
    thread = threading.Thread(target=lambda: (over.wait(), seen.append(os.sched_getaffinity(0))))
    thread.start()
    chosen = before[:2]
    try:
        keep_to_cores(chosen, ranks=ranks)
        kept = os.sched_getaffinity(0)
    finally:
        over.set()
        thread.join()
        for each in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # the one that has just ended
                os.sched_setaffinity(int(each.name), before)
    if ranks == 1 and len(chosen) == 2:  # the thread that steps has the first for itself
        assert (kept, seen) == ({chosen[0]}, [{chosen[1]}])
    else:
        assert (kept, seen) == (set(chosen), [set(chosen)])


def lines() -> tuple[Line, Line]:
    left, right = socket.socketpair()
    return Line(left), Line(right)


def test_messages_that_come_in_pieces_or_together_are_read_one_by_one() -> None:
    driver, rank = lines()
    driver.connection.sendall(b'{"kind": "turn", "steps": 1}\n{"kind": "tu')

    assert rank.receive(1.0) == {"kind": "turn", "steps": 1}
    with pytest.raises(TimeoutError):
        rank.receive(0.01)
    driver.connection.sendall(b'rn", "steps": 2}\n')
    assert rank.receive(1.0) == {"kind": "turn", "steps": 2}
    driver.close()
    rank.close()


def test_a_message_that_is_cut_off_by_the_end_is_the_end() -> None:
    driver, rank = lines()
    driver.connection.sendall(b'{"kind": "tu')
    driver.close()

    with pytest.raises(EOFError):
        rank.receive(1.0)
    rank.close()


def test_every_fork_lays_its_memory_out_anew() -> None:
    sizes = [tuple(len(block) for block in scatter() if isinstance(block, bytearray)) for _ in range(2)]  # type: ignore[arg-type]

    assert sizes[0] != sizes[1]


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are Linux' matter")
def test_programs_of_the_same_code_lie_at_the_same_addresses_and_keep_their_words() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from launch import baton; alike = baton._addresses_alike(); "
        "print(alike, sys.argv, baton.AGAIN in baton.os.environ, id(sys), open('/proc/self/maps').readline())"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parents[2]), "a word"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    told = {
        subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    if any(each.startswith("False") for each in told):
        pytest.skip("this system does not let a process ask for it")
    (same,) = told
    assert same.startswith("True")
    assert "'a word'] False" in same


def test_a_checkout_in_src_layout_brings_the_packages_of_its_src(tmp_path, monkeypatch) -> None:
    package = tmp_path / "src" / "mine_in_src"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert baton.import_roots(str(tmp_path)) == [str(tmp_path), str(tmp_path / "src")]
    with pytest.raises(ImportError, match="no module of it was imported"):
        baton._refuse_code_from_elsewhere(tmp_path)
    monkeypatch.setattr(sys, "path", [*baton.import_roots(str(tmp_path)), *sys.path])
    importlib.import_module("mine_in_src")
    baton._refuse_code_from_elsewhere(tmp_path)
    (tmp_path / "src" / "launch").mkdir()
    (tmp_path / "src" / "launch" / "baton.py").write_text("")
    with pytest.raises(ImportError, match=r"launch.baton came from"):
        baton._refuse_code_from_elsewhere(tmp_path)
    (tmp_path / "src" / "__init__.py").write_text("")  # a package that is called so
    assert baton.import_roots(str(tmp_path)) == [str(tmp_path)]


def test_code_that_came_from_somewhere_else_than_the_arms_checkout_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="no module of it was imported"):
        baton._refuse_code_from_elsewhere(tmp_path)
    (tmp_path / "mine_named_here.py").write_text("raise SystemExit('found, not imported')")
    baton._refuse_code_from_elsewhere(tmp_path, ("gpt", "mine_named_here:Mine", "none_such.at_all:Mine"))
    with pytest.raises(ImportError, match="no module of it was imported"):
        baton._refuse_code_from_elsewhere(tmp_path, ("none_such.at_all:Mine",))
    (tmp_path / "mine_only_here.py").write_text("")
    importlib.import_module("mine_only_here")
    baton._refuse_code_from_elsewhere(tmp_path)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "baton.py").write_text("")
    with pytest.raises(ImportError, match=r"launch.baton came from .*name the folder"):
        baton._refuse_code_from_elsewhere(tmp_path)
