import pytest


@pytest.fixture
def worth_compiling(monkeypatch):
    """Compiles even runs that would end sooner on the engine."""
    monkeypatch.setattr("dbjax.executors.compiled._WORTH_COMPILING", 0)


@pytest.fixture
def in_parts(monkeypatch):
    """Returns a function that makes compiled runs have parts of a few gradients."""

    def divide():
        monkeypatch.setattr("dbjax.executors.compiled._FIRST", 20)
        monkeypatch.setattr("dbjax.schedules.timing._BETWEEN", 8)

    return divide
