"""Fixtures of the language stage's tests."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fastervlm_video.models.base import LanguageHalf
from tests.language.toys import byte_level_tokenizer, make_half


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture
def half(tokenizer: PreTrainedTokenizerFast) -> LanguageHalf:
    """Fresh for every test: some hook into it. About one token in sixty ends an answer."""
    return make_half(tokenizer, end_ids=[2, 70, 90, 110, 200])
