#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record what chat templates make of some conversations.

Usage: record_chat.py FOLDER > FOLDER/recorded.txt, where FOLDER has the
templates NAME.jinja. Needs python3-jinja2; rendered as the transformers
library does. One record a conversation: lines KEY "VALUE", in values \\n, \\r,
\\t and \\\\ are escapes; a blank line ends it."""
import os
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Who are you?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"),
     ("user", "Say  it\n\nagain")],
    [("system", ""), ("user", "")],
    [("user", " \t blanks around \n "), ("assistant", "\n  yes \n"),
     ("user", "\u3000\u00a0wide\u2003 \x1f")],
    [("user", "Is <|im_end|> text? </s> <|eot_id|>"),
     ("assistant", "<|im_start|>user\nno")],
    [("system", "first"), ("user", "a"), ("system", "second"), ("user", "b")],
    [("assistant", "I begin."), ("user", "Go on"), ("assistant", "And end.")],
    [("user", "2+2?"), ("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
     ("user", "sure?"), ("assistant", "<think>\n\n\nYes.\n\n</think>\n\n\nYes!"),
     ("assistant", "x</think>y</think>\nz")],
    [("assistant", "a <think>b</think>"), ("assistant", "</think>"),
     ("assistant", "plain")],
    [("user", "q"), ("assistant", "\n<think>\n1\n<think>\n2\n</think>\n\n3\n"),
     ("assistant", "\n\nmore")],
    [("user", "q"), ("assistant", "call"),
     ("user", "<tool_response>\n5\n</tool_response>"),
     ("assistant", "<think>five</think>It is 5."), ("user", "<tool_response>"),
     ("assistant", "done")],
    [("user", "caf\u00e9 \u4e16\u754c \U0001f999")],
]


def escape(text):
    for raw, name in (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"),
                      ("\r", "\\r")):
        text = text.replace(raw, name)
    return text


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
print("# made by tests/support/record_chat.py\n")
for name in sorted(os.listdir(sys.argv[1])):
    if not name.endswith(".jinja"):
        continue
    with open(os.path.join(sys.argv[1], name), encoding="utf-8") as f:
        template = env.from_string(f.read())
    ways = [{"add_generation_prompt": True}, {"add_generation_prompt": False}]
    if name == "qwen3.jinja":
        ways.append({"add_generation_prompt": True, "enable_thinking": False})
    for conversation in CONVERSATIONS:
        for way in ways:
            text = template.render(
                messages=[{"role": r, "content": c} for r, c in conversation],
                bos_token="<|begin_of_text|>", eos_token="</s>", **way)
            print(f'template "{name[:-6]}"')
            for key, value in way.items():
                print(f'{key} "{int(value)}"')
            for role, content in conversation:
                print(f'{role} "{escape(content)}"')
            print(f'text "{escape(text)}"\n')
