"""Ports for worlds that are yet to listen on them."""

from __future__ import annotations

import socket

import pytest

from launch import local

BELOW = 30_000


@pytest.fixture(autouse=True)
def ephemeral_from_there_on(monkeypatch):
    """Whatever range this machine has been given."""
    monkeypatch.setattr(local, "_first_ephemeral_port", lambda: BELOW)


def test_worlds_get_ports_that_differ_and_that_no_connection_is_given():
    ports = [local.free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(1024 <= port < BELOW for port in ports)


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch, address):
    with socket.socket() as taken:
        port = local.free_port()
        taken.bind((address, port))
        taken.listen()
        monkeypatch.setattr(local, "_ASKED", iter(range(port - local._FIRST_PORT, port + 100)))
        assert local.free_port() != port
        assert "is taken by another process" in local.port_taken(port)


def test_without_a_port_below_the_ephemeral_ones_any_free_one_is_given(monkeypatch):
    monkeypatch.setattr(local, "_first_ephemeral_port", lambda: 1024)
    assert local.port_taken(local.free_port()) is None
