"""Commands that optbench prints, to be copied, work as they stand: with the store that they are about."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness import cli, invocation
from harness.errors import OptbenchError
from harness.store import Store
from harness.verbs import compared, comparing, training
from tests.unit import comparison_examples as examples
from tests.unit.test_plan import machine
from tests.unit.test_show import SPECS, train

PRINTED = re.compile(r"(?:^|\s)optbench (?:run|show|list|compare|verify|plan|gate|selftest|doctor) [^\n]*")


def commands(*texts: str) -> list[list[str]]:
    """Return the words after ``optbench`` of every command in some output."""
    return [shlex.split(found.strip())[1:] for text in texts for found in PRINTED.findall(text)]


def execute(words) -> int:
    try:
        return cli.app(list(words), standalone_mode=False) or 0
    except (OptbenchError, cli.WrongWords) as error:
        return cli._explain(error)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder, and a store elsewhere whose name a shell would break in two."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(invocation, "program", lambda: ["optbench"])
    return tmp_path / "my results"


@pytest.fixture
def filled(here):
    """The store with a sweep of two runs and a comparison."""
    store = Store(here)
    with store.new_sweep("night", SPECS[:3]) as log:
        for index in range(2):
            log.started(index, train(store, SPECS[index]), SPECS[index])
    comparing.save(store, examples.comparison())
    return store


def test_what_a_run_a_comparison_and_a_list_print_is_executed_as_it_stands(filled, capsys):
    store = filled
    (sweep_id,) = store.sweep_ids()
    records = training.records(store, sweep_id)
    ((name, _),) = store.documents("comparison")
    texts = [
        training._next_words(records, sweep_id, store.root, interrupted=False),
        training._next_words(records, sweep_id, store.root, interrupted=True),
    ]
    compared.show_stored(name, comparing.load(store, name)[1], store, as_json=False)
    for words in (
        ("show", "--results", str(store.root)),
        ("show", sweep_id, "--results", str(store.root)),
        ("compare", records[0].run_id, records[1].run_id, "--results", str(store.root)),
        ("compare", "--from", sweep_id, "--results", str(store.root)),
        ("compare", name, "--results", str(store.root)),
    ):
        execute(words)
    told = capsys.readouterr()
    found = commands(*texts, told.out, told.err)
    verbs = {tuple(word for word in words[:2] if word[0] != "2") for words in found}
    assert {
        ("show", sweep_id),
        ("show",),
        ("list", "optimizers"),
        ("run", "--resume"),
        ("compare", "--from"),
    } <= verbs
    about = [words for words in found if words[0] != "list"]
    assert all(words[-2:] == ["--results", str(store.root)] for words in about), about
    for words in found:
        if words[0] != "run":
            assert execute(words) in {0, 3}, words
    assert list(Path.cwd().iterdir()) == []  # none has made a store here


def test_a_sweep_that_was_interrupted_goes_on_by_the_command_that_is_printed(filled, monkeypatch):
    (sweep_id,) = filled.sweep_ids()
    (words,) = commands(training._next_words([], sweep_id, filled.root, interrupted=True))
    resumed = []
    monkeypatch.setattr(training, "run", lambda _found, _store, log, *_, **__: resumed.append(log.sweep_id) or 0)
    monkeypatch.setattr("harness.verbs.here.machine", lambda *_: machine())
    assert execute(words) == 0
    assert resumed == [sweep_id]
