import pytest


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Data sets are made once for these tests, and not among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("data")
        patch.setenv("DBJAX_DATA_DIR", str(path))
        yield path
