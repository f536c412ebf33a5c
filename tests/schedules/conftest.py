import pytest


@pytest.fixture
def worth_compiling(monkeypatch):
    """Compiles even runs that would end sooner on the engine."""
    monkeypatch.setattr("dbjax.executors.compiled._WORTH_COMPILING", 0)
