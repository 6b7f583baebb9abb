"""The mini model's words, and the tokenizer made of them."""

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "WORDS", "build_tokenizer"]

PAD, BOS, EOS, UNK, IMAGE, VIDEO = "<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"

_TEXT = """
    user assistant : ? . , a an the is are was do does did can of in on at to from and or not no yes it there this that
    how many much what which who where when why whose we you i see tell me about describe happens happening happen
    show shows shown contain contains have has color colour colors colours shape shapes object objects thing things item
    items video clip frame frames scene picture first last final earliest latest before after then start starts started
    beginning begin begins end ends position located direction way move moves moved moving go goes going travel travels
    stay stays still drift drifts appear appears appeared come comes enter enters present visible does
    red green blue yellow purple cyan orange pink brown white black gray grey circle square triangle cross star ring
    zero one two three four five six number count total left right up down top bottom upper lower middle center corner
    small large big fast slow disappear
"""
WORDS = tuple(dict.fromkeys(_TEXT.split()))

# Vicuna's format as published Video-LLaVA checkpoints have it: the video stands before the question.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A case-blind word-level tokenizer over :data:`WORDS`; other words become ``<unk>``.

    It begins every prompt with ``<s>``, as Llama's does, and knows ``<image>`` and ``<video>``.
    """
    special = (PAD, BOS, EOS, UNK, IMAGE, VIDEO)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*special, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
