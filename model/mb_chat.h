/* SPDX-License-Identifier: Apache-2.0
 * model/mb_chat.h - messages of a conversation as the text a model was taught.
 *
 * Chat models come with a template in a language of its own
 * (tokenizer.chat_template). There is no interpreter for it here: the
 * templates of a few families are written out as functions, and a file's
 * template is recognised by the tokens and words in it. One that is not
 * recognised is refused, as a wrong template makes a model talk nonsense.
 *
 *     struct mb_chat chat;
 *     st = mb_chat_open(gguf, tok, &chat, err);
 *     st = mb_chat_render(&chat, messages, n, &opt, &text, &plain, err);
 *     // then mb_tokenizer_encode_prompt with both and
 *     // MB_PROMPT_SPECIAL | MB_PROMPT_ENDS
 *
 * Threads: any. */
#ifndef MB_CHAT_H
#define MB_CHAT_H

#include "mb_model.h"

typedef enum mb_chat_family {
    MB_CHAT_CHATML = 0,  /* <|im_start|>role\n...<|im_end|>\n, nothing else */
    MB_CHAT_SMOLLM2 = 1, /* and a system message of its own where none is */
    MB_CHAT_QWEN2 = 2,   /* the same with another one */
    MB_CHAT_QWEN25 = 3,  /* the same with another one */
    MB_CHAT_QWEN3 = 4,   /* with <think> */
    MB_CHAT_ZEPHYR = 5,  /* <|user|>\n...</s>\n: TinyLlama */
    MB_CHAT_LLAMA3 = 6,  /* <|start_header_id|>role<|end_header_id|>\n\n... */
} mb_chat_family;

/* Views; they live as long as the tokenizer. */
struct mb_chat {
    mb_chat_family family;
    struct mb_slice bos; /* of a template that writes it, unless encoding adds
                            it anyway */
    struct mb_slice eos;
};

struct mb_chat_message {
    struct mb_slice role; /* "system", "user", "assistant" */
    struct mb_slice content;
};

/* Zero is the default. */
struct mb_chat_options {
    bool is_closed;   /* do not open an assistant's message at the end */
    bool no_thinking; /* MB_CHAT_QWEN3: answer without <think> */
};

/* Recognise the template of a file, whose tokenizer is tok. Errors: NOT_FOUND
 * (it has none), NOT_IMPLEMENTED (of no known family; err says how it
 * begins), CORRUPT (it is no string). */
MB_MUST_USE mb_status mb_chat_open(const struct mb_gguf *gguf,
    const struct mb_tokenizer *tok, struct mb_chat *out, struct mb_error *err);
/* "qwen2.5"; static. */
const char *mb_chat_family_name(mb_chat_family family);

/* Append the conversation's text to `text`, which must be empty, and to plain
 * (element mb_span, their n_tokens 0) the stretches of it that messages gave.
 * Errors: BAD_ARG (no messages, another role), TOO_LARGE, NOMEM. */
MB_MUST_USE mb_status mb_chat_render(const struct mb_chat *chat,
    const struct mb_chat_message *messages, size_t n,
    const struct mb_chat_options *opt, struct mb_buffer *text,
    struct mb_buffer *plain, struct mb_error *err);

#endif
