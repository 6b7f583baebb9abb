"""Small models and tokenizers of the kinds that real checkpoints have, and Hugging Face's answers as the oracle."""

import copy
import itertools
import random
from typing import Any, TypeAlias, cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
)
from transformers.models.video_llava.modeling_video_llava import VideoLlavaMultiModalProjector

from fastervlm_video.config import SamplingParams
from fastervlm_video.language import GenerationRequest, Prompt
from fastervlm_video.models.base import LanguageHalf

VISION_WIDTH = 24
CONTEXT_LENGTH = 96
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<video>")
CORPUS = (
    "USER: What is the colour of the ball? ASSISTANT: The ball is red.",
    "Ein grünes Dreieck bewegt sich über die Straße.",
    "你好世界。这是一个视频。",
    "🙂🎉 done 👩‍👩‍👧 family",
)
_names = itertools.count()

Inserts: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]


def make_half(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    end_ids: int | list[int] | None = None,
    context_length: int = CONTEXT_LENGTH,
) -> LanguageHalf:
    """A random Llama, Video-LLaVA projector and separator; the wide initialisation makes its answers vary."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        initializer_range=0.6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if end_ids is None else end_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, num_attention_heads=4, num_hidden_layers=2, intermediate_size=32
    )
    projector = VideoLlavaMultiModalProjector(VideoLlavaConfig(vision_config=vision, text_config=copy.deepcopy(text)))
    model = LlamaForCausalLM._from_config(text, attn_implementation="sdpa")
    separator = torch.randn(text.hidden_size, generator=torch.Generator().manual_seed(seed))
    return LanguageHalf(model.eval(), projector.eval(), VISION_WIDTH, context_length, "toy", separator)


def random_inserts(half: LanguageHalf, rng: random.Random, num_visual: int) -> Inserts:
    """Up to two, anywhere among the visual tokens, also at their ends and in one place."""
    vocabulary = half.language_model.config.vocab_size
    positions = sorted(rng.randint(0, num_visual) for _ in range(rng.randint(0, 2)))
    return tuple(
        (position, tuple(rng.randrange(len(SPECIAL), vocabulary) for _ in range(rng.randint(1, 3))))
        for position in positions
    )


def random_separators(rng: random.Random, num_visual: int) -> tuple[int, ...]:
    """Up to half of the visual tokens."""
    return tuple(sorted(rng.sample(range(num_visual), rng.randint(0, num_visual // 2))))


def make_request(
    half: LanguageHalf,
    *,
    seed: int = 0,
    num_before: int = 3,
    num_visual: int = 5,
    num_after: int = 4,
    max_tokens: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    sampling_seed: int | None = None,
    inserts: Inserts = (),
    separators: tuple[int, ...] = (),
) -> GenerationRequest:
    """A request of random ids and features."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = half.language_model.config.vocab_size
    ids = torch.randint(len(SPECIAL), vocabulary, (num_before + num_after,), generator=generator).tolist()
    return GenerationRequest(
        request_id=f"toy-{next(_names)}",
        prompt=Prompt(tuple(ids[:num_before]), num_visual, tuple(ids[num_before:]), inserts),
        visual=torch.randn(num_visual - len(separators), VISION_WIDTH, generator=generator),
        sampling=SamplingParams(max_tokens, temperature, top_p, sampling_seed),
        separators=separators,
    )


def make_question(
    half: LanguageHalf,
    *,
    video: int,
    question: int,
    num_visual: int = 40,
    num_after: int = 9,
    num_before: int = 3,
    max_tokens: int = 8,
    identity: str | None = "",
    inserts: Inserts = (),
    separators: tuple[int, ...] = (),
) -> GenerationRequest:
    """One of several questions about a video; by default the video's number is what it is known by."""
    num_features = num_visual - len(separators)
    visual = torch.randn(num_features, VISION_WIDTH, generator=torch.Generator().manual_seed(video))
    vocabulary = half.language_model.config.vocab_size
    after = torch.randint(len(SPECIAL), vocabulary, (num_after,), generator=torch.Generator().manual_seed(question))
    return GenerationRequest(
        request_id=f"toy-{next(_names)}",
        prompt=Prompt(
            (1, 9, 17, *(10 + at % 7 for at in range(num_before - 3))), num_visual, tuple(after.tolist()), inserts
        ),
        visual=visual,
        sampling=SamplingParams(max_tokens),
        cache_identity=f"video {video}" if identity == "" else identity,
        separators=separators,
    )


class Oracle:
    """Hugging Face's own ``generate`` on a copy of the model, with another attention implementation."""

    def __init__(self, half: LanguageHalf) -> None:
        self.model = copy.deepcopy(half.language_model)
        self.model.set_attn_implementation("eager")
        assert self.model.config._attn_implementation == "eager"
        assert half.language_model.config._attn_implementation == "sdpa"
        self.projector = half.projector
        self.separator = half.separator

    @torch.no_grad()
    def embeds(self, request: GenerationRequest) -> Tensor:
        """Row by row, as the words have it: each visual token behind the inserts that stand in front of it."""
        prompt = request.prompt
        embed = cast("nn.Embedding", self.model.get_input_embeddings()).weight
        features = iter(self.projector(request.visual))
        rows = [embed[i] for i in prompt.ids_before]
        for position in range(prompt.num_visual + 1):
            rows += [embed[i] for at, ids in prompt.inserts if at == position for i in ids]
            if position in request.separators:
                assert self.separator is not None
                rows.append(self.separator)
            elif position < prompt.num_visual:
                rows.append(next(features))
        assert next(features, None) is None
        return torch.stack([*rows, *(embed[i] for i in prompt.ids_after)])

    @torch.no_grad()
    def answer(self, request: GenerationRequest) -> tuple[int, ...]:
        """Greedy token ids, the end-of-answer token included."""
        embeds = self.embeds(request)[None]
        model: Any = self.model  # generate is not annotated in a way that mypy accepts
        ids: Tensor = model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=request.sampling.max_tokens,
        )
        return tuple(ids[0].tolist())


def _wrap(tokenizer: Tokenizer, *, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"video_token": "<video>"},
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: every token is a run of bytes, characters may be cut anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=len(SPECIAL) + len(alphabet) + 40,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return _wrap(tokenizer)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's kind: ``▁`` for blanks, the first one dropped when decoding, unknown characters as byte tokens."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁"]
    characters = sorted(set("".join(CORPUS[:2])) - {" "})
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "s"), ("▁", "is"), ("r", "e"), ("▁", "re"), ("▁", "▁")]
    pieces += characters + [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(tokenizer)


def whole_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """All ids decoded at once, as an answer shows them."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text.lstrip()
