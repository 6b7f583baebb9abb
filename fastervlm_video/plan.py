"""Everything about a request that can be known before any pixel is decoded.

The kept count follows from configuration, never from content, so the prompt's length, the cache key and
every parameter error are known from the checkpoint's config, tokenizer and fingerprint alone: no weights
are loaded, and no work is begun for a request that cannot be answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastervlm_video.cache import DEFAULT_STORAGE, CacheKey, Storage, make_key
from fastervlm_video.config import FrameSampling, Medium, ModelOptions, PruneSpec, SamplingParams
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.language import Message, Prompt, PromptBuilder, check_context
from fastervlm_video.media import FrameBatch
from fastervlm_video.mini import resolve_model
from fastervlm_video.models import Checkpoint
from fastervlm_video.prune import get_method
from fastervlm_video.vision import EncodeJob, Preprocessing, ViewLayout, VisualSequence, VisualTokens

__all__ = ["ModelFacts", "TokenPlan"]


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """The token set that a request needs.

    Attributes:
        key: where it is cached.
        tokens_per_frame: patches kept in each frame (or view); on average, by methods that spread a video's budget.
        medium: what it is made of.
    """

    key: CacheKey
    tokens_per_frame: int
    medium: Medium


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What is known of a checkpoint without its weights in memory.

    Attributes:
        name: what answers call the model.
        checkpoint: files, config and tokenizer.
        prompts: lay out prompts in the checkpoint's chat format, by what they are about.
        options: what was chosen about its architecture.
    """

    name: str
    checkpoint: Checkpoint
    prompts: Mapping[Medium, PromptBuilder]
    options: ModelOptions = field(default_factory=ModelOptions)

    @classmethod
    def open(
        cls, model: str | Path, *, revision: str | None = None, options: ModelOptions | None = None
    ) -> "ModelFacts":
        """Find a checkpoint and read what is small in it.

        Args:
            model: ``mini``, a folder, or a Hugging Face id.
            revision: of a Hugging Face id.
            options: what may be chosen about its architecture.

        Raises:
            CheckpointError: there is none, or it is not one of the supported architectures.
            InvalidRequestError: an option does not fit the checkpoint.
        """
        found, options = resolve_model(model), options or ModelOptions()
        checkpoint = Checkpoint.open(found.location, revision, options=options)
        prompts = {medium: _prompts(checkpoint, medium, options) for medium in Medium}
        return cls(found.name, checkpoint, prompts, options)

    def fingerprint(self, medium: Medium = Medium.VIDEO) -> str:
        """Identity of the tower that sees it."""
        return self.checkpoint.tower_fingerprint(medium)

    def preprocessing(self, medium: Medium = Medium.VIDEO) -> Preprocessing:
        """The checkpoint's own."""
        return self.checkpoint.preprocessing(medium)

    def layout(self, medium: Medium = Medium.VIDEO) -> ViewLayout:
        """How views make up pictures, and tokens a prompt."""
        return self.checkpoint.layout(medium)

    @property
    def patches_per_frame(self) -> int:
        """Visual tokens of an unpruned frame, or view, without [CLS]."""
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
        medium: Medium = Medium.VIDEO,
        dtype: Storage = DEFAULT_STORAGE,
        salt: bytes = b"",
    ) -> TokenPlan:
        """The token set for one video or picture.

        Args:
            content_digest: SHA-256 of its bytes, hex.
            sampling: which frames of a video.
            prune: which of their tokens.
            medium: what it is.
            dtype: how they are stored, which is the cache's choice.
            salt: the tenant's.

        Raises:
            InvalidRequestError: unknown method, more tokens asked for than there are, or [CLS] tokens where the
                architecture has no place for them.
        """
        method = get_method(prune.method)
        per_frame = self._budget(prune, medium)
        key = make_key(
            content_digest=content_digest,
            medium=medium,
            sampling=sampling,
            preprocessing=self.preprocessing(medium).identity(),
            layout=self.layout(medium).identity(),
            tower_fingerprint=self.fingerprint(medium),
            prune=prune,
            nested=method.nested,
            seeded=method.seeded,
            tokens_per_frame=per_frame,
            dtype=dtype,
            salt=salt,
        )
        return TokenPlan(key, per_frame, medium)

    def encode_job(self, frames: FrameBatch, prune: PruneSpec, medium: Medium = Medium.VIDEO) -> EncodeJob:
        """What the encoder is to do with decoded frames."""
        regions = self.layout(medium).regions((frames.info.height, frames.info.width))
        return EncodeJob(frames, prune, medium, regions * frames.num_pictures)

    def visual_runs(
        self,
        sampling: FrameSampling,
        prune: PruneSpec,
        medium: Medium = Medium.VIDEO,
        *,
        size: tuple[int, int] | None = None,
    ) -> tuple[int, ...]:
        """Visual tokens behind each placeholder of a prompt, by all methods that promise a fixed total.

        They follow from the configuration alone, or, where a picture is seen in several views, from it and the size of
        the picture; without that, the numbers are the least that it may be.

        Args:
            sampling: which frames of a video.
            prune: which of their tokens.
            medium: what it is.
            size: (height, width) of the picture, or the video's frames, if they are known.

        Raises:
            InvalidRequestError: as :meth:`plan`.
        """
        layout, budget = self.layout(medium), self._budget(prune, medium)
        kept = layout.fewest(budget) if size is None else layout.count(size, budget)
        return self._runs((kept + prune.keep_cls,) * (sampling.num_frames if medium is Medium.VIDEO else 1), medium)

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """A token set as the language model is to see it, with a run for each placeholder of the prompt."""
        sequence = self.layout(tokens.medium).arrange(tokens)
        return VisualSequence(sequence.features, sequence.separators, self._runs(sequence.runs, tokens.medium))

    def prompt(
        self, question: str, runs: int | Sequence[int], params: SamplingParams, medium: Medium = Medium.VIDEO
    ) -> Prompt:
        """Lay out a question, and check that the answer fits.

        Args:
            question: what is asked.
            runs: visual tokens behind each placeholder, see :meth:`arrange` and :meth:`visual_runs`.
            params: how long the answer may be.
            medium: what the question is about.

        Raises:
            InvalidRequestError: the question is empty or contains a reserved token.
            ContextLengthError: prompt, video and answer exceed the context.
        """
        return self.chat_prompt([Message("user", question)], runs, params, medium)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        runs: int | Sequence[int],
        params: SamplingParams,
        medium: Medium = Medium.VIDEO,
    ) -> Prompt:
        """The same for a conversation of several turns. See :meth:`PromptBuilder.build_chat`.

        Raises:
            InvalidRequestError: a text is empty or contains a reserved token, or the turns do not alternate.
            ContextLengthError: prompt, video and answer exceed the context.
        """
        prompt = self.prompts[medium].build_chat(messages, runs)
        check_context(prompt, params.max_tokens, self.context_length)
        return prompt

    def _budget(self, prune: PruneSpec, medium: Medium) -> int:
        if prune.keep_cls and not self.layout(medium).allows_cls:
            raise InvalidRequestError(
                "keep_cls: this model sees a picture in several views, whose [CLS] tokens have no place in its prompt; "
                "leave it out"
            )
        return prune.tokens_per_frame(self.patches_per_frame)

    def _runs(self, per_picture: tuple[int, ...], medium: Medium) -> tuple[int, ...]:
        """A run per picture, or one for all."""
        return per_picture if self.checkpoint.adapter.frames_are_pictures(medium) else (sum(per_picture),)


def _prompts(checkpoint: Checkpoint, medium: Medium, options: ModelOptions) -> PromptBuilder:
    as_pictures = checkpoint.adapter.frames_are_pictures(medium)
    return PromptBuilder(
        checkpoint.tokenizer,
        checkpoint.placeholder(medium),
        part="image" if as_pictures else "video",
        frame_label=options.frame_label if medium is Medium.VIDEO and as_pictures else "",
    )
