"""For the tests of the manifests."""

import pytest

from tests.k8s.build import TYPICAL, Choice, Manifests


@pytest.fixture(params=TYPICAL, ids=str)
def choice(request: pytest.FixtureRequest) -> Choice:
    """Overlays and components."""
    found: Choice = request.param
    return found


@pytest.fixture
def manifests(choice: Choice) -> Manifests:
    """Their objects."""
    return Manifests.of(choice)
