"""Small folders with the tokenizer files of a checkpoint, in the two forms that most models have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = ["Once upon a time there was a little girl. She said hello, hello world! What is 2 + 2? It is 4.",
         "un été à Zürich, naïve café; 東京 🙂 user system assistant"] * 4  # fmt: skip

#: The form of ChatML, as Qwen has it, with what the sandbox and transformers' environment are asked for.
CHATML = """{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{- message.content | trim }}{%- endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if tools %}
    {{- '# Tools ' + tools | tojson + '\\n' }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if thinking is defined %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}
"""
#: Llama's older form; control tokens come from variables.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write(folder: Path, tokenizer: Tokenizer, **files: dict[str, Any]) -> Path:
    """A folder with tokenizer.json and the given JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level(folder: Path, **config: Any) -> Path:
    """As Qwen: bytes, ChatML, no begin mark, `<think>` an added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.enable_truncation(8)  # as a training run may leave it in the file
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "chat_template": CHATML}  # fmt: skip
    return write(folder, tokenizer, tokenizer_config={**base, **config},
                 generation_config={"eos_token_id": [tokenizer.token_to_id("<|endoftext|>")]})  # fmt: skip


def byte_fallback(folder: Path, **config: Any) -> Path:
    """As Llama 2: a space before the first word, bytes for unknown characters, a begin mark."""
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, limit_alphabet=40,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))],
    )  # fmt: skip
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(WORDS, trainer)
    # Training marked the bytes as special; a real file has them in the vocabulary only.
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    base = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(
        folder, tokenizer, tokenizer_config={**base, **config}, config={"eos_token_id": 2},
        special_tokens_map={"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"},
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(INST)
    return folder
