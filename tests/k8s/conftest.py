"""For the tests of the manifests."""

import pytest

from tests.k8s.build import FETCH_MODEL, TYPICAL, Choice, Manifests

EVERYWHERE = pytest.mark.parametrize("choice", [*TYPICAL, FETCH_MODEL], ids=str, indirect=True)
"""For tests of what holds without Ray as well; the others are of :data:`TYPICAL` alone."""


@pytest.fixture(params=TYPICAL, ids=str)
def choice(request: pytest.FixtureRequest) -> Choice:
    """Overlays and components."""
    found: Choice = request.param
    return found


@pytest.fixture
def manifests(choice: Choice) -> Manifests:
    """Their objects."""
    return Manifests.of(choice)
