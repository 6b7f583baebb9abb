"""Everything about a request that can be known before any pixel is decoded.

The kept count follows from configuration, never from content, so the prompt's length, the cache key and
every parameter error are known from the checkpoint's config, tokenizer and fingerprint alone: no weights
are loaded, and no work is begun for a request that cannot be answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastervlm_video.cache import DEFAULT_STORAGE, CacheKey, Storage, make_key
from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.language import Message, Prompt, PromptBuilder, check_context
from fastervlm_video.mini import resolve_model
from fastervlm_video.models import Checkpoint
from fastervlm_video.prune import get_method
from fastervlm_video.vision import Preprocessing

__all__ = ["ModelFacts", "TokenPlan"]


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """The token set that a request needs.

    Attributes:
        key: where it is cached.
        tokens_per_frame: patches kept in each frame; on average, by methods that spread a video's budget.
        num_visual: visual tokens in the prompt, [CLS] tokens included.
    """

    key: CacheKey
    tokens_per_frame: int
    num_visual: int


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What is known of a checkpoint without its weights in memory.

    Attributes:
        name: what answers call the model.
        checkpoint: files, config and tokenizer.
        prompts: lays out prompts in the checkpoint's chat format.
    """

    name: str
    checkpoint: Checkpoint
    prompts: PromptBuilder

    @classmethod
    def open(cls, model: str | Path, *, revision: str | None = None) -> "ModelFacts":
        """Find a checkpoint and read what is small in it.

        Args:
            model: ``mini``, a folder, or a Hugging Face id.
            revision: of a Hugging Face id.

        Raises:
            CheckpointError: there is none, or it is not one of the supported architectures.
        """
        found = resolve_model(model)
        checkpoint = Checkpoint.open(found.location, revision)
        video_token = checkpoint.tokenizer.convert_ids_to_tokens([checkpoint.video_token_id])[0]
        return cls(found.name, checkpoint, PromptBuilder(checkpoint.tokenizer, video_token))

    @property
    def fingerprint(self) -> str:
        """Identity of the tower."""
        return self.checkpoint.tower_fingerprint

    @property
    def preprocessing(self) -> Preprocessing:
        """The checkpoint's own."""
        return self.checkpoint.preprocessing

    @property
    def patches_per_frame(self) -> int:
        """Visual tokens of an unpruned frame, without [CLS]."""
        return self.checkpoint.patches_per_frame

    @property
    def context_length(self) -> int:
        """Most positions of the language model, prompt and answer together."""
        return self.checkpoint.context_length

    def plan(
        self,
        content_digest: str,
        sampling: FrameSampling,
        prune: PruneSpec,
        *,
        dtype: Storage = DEFAULT_STORAGE,
        salt: bytes = b"",
    ) -> TokenPlan:
        """The token set for one video.

        Args:
            content_digest: SHA-256 of the video's bytes, hex.
            sampling: which frames.
            prune: which of their tokens.
            dtype: how they are stored, which is the cache's choice.
            salt: the tenant's.

        Raises:
            InvalidRequestError: unknown method, or more tokens asked for than there are.
        """
        method = get_method(prune.method)
        per_frame = prune.tokens_per_frame(self.patches_per_frame)
        key = make_key(
            content_digest=content_digest,
            sampling=sampling,
            preprocessing=self.preprocessing.identity(),
            tower_fingerprint=self.fingerprint,
            prune=prune,
            nested=method.nested,
            seeded=method.seeded,
            tokens_per_frame=per_frame,
            dtype=dtype,
            salt=salt,
        )
        return TokenPlan(key, per_frame, self.num_visual(sampling, prune))

    def num_visual(self, sampling: FrameSampling, prune: PruneSpec) -> int:
        """Visual tokens that a prompt will have, by all methods that promise a fixed total.

        Raises:
            InvalidRequestError: more tokens asked for than a frame has.
        """
        return sampling.num_frames * (prune.tokens_per_frame(self.patches_per_frame) + prune.keep_cls)

    def prompt(self, question: str, num_visual: int, params: SamplingParams) -> Prompt:
        """Lay out a question, and check that the answer fits.

        Raises:
            InvalidRequestError: the question is empty or contains a reserved token.
            ContextLengthError: prompt, video and answer exceed the context.
        """
        return self.chat_prompt([Message("user", question)], num_visual, params)

    def chat_prompt(self, messages: Sequence[Message], num_visual: int, params: SamplingParams) -> Prompt:
        """The same for a conversation of several turns. See :meth:`PromptBuilder.build_chat`.

        Raises:
            InvalidRequestError: a text is empty or contains a reserved token, or the turns do not alternate.
            ContextLengthError: prompt, video and answer exceed the context.
        """
        prompt = self.prompts.build_chat(messages, num_visual)
        check_context(prompt, params.max_tokens, self.context_length)
        return prompt
