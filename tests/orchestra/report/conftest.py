import pytest


@pytest.fixture(autouse=True, scope="module")
def no_collection():
    """multipletests collects garbage at every call, a tenth of a second and more here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", int)
        yield
