"""Hand-made chat templates of the usual kinds, and a small tokenizer of bytes."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATES = {
    "chatml": """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "llama": """\
{{- bos_token }}
{%- for message in messages -%}
    {{- '[' + message.role + ']\n\n' + message.content | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}
""",
    "mistral": """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant/user') }}
{% endif %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- endfor %}
""",
    "helpers": """\
{{ messages | tojson }}|{{ dict(b=1, a=2) | tojson(indent=2) }}|
{{- {'b': 1, 'a': [2]} | tojson(separators=(',', ':'), sort_keys=true) }}|
{{- strftime_now('%Y') }}
{%- set ns = namespace(n=0, first='') %}
{%- for message in messages %}
    {%- set ns.n = ns.n + 1 %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.first = message.role %}
    {%- break %}
{%- endfor -%}
|n={{ ns.n }}|only {{ ns.first }}
{%- for key, value in {'k': 1}.items() %}|{{ key }}={{ value }}{% endfor %}
""",
    "training": """\
Q {{ messages[-1].content }} {% generation %}A{% endgeneration %}
""",
}


def tokenizer() -> Tokenizer:
    """Bytes, and the special tokens of the templates; 0 begins a text, 1 ends it."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    return made
