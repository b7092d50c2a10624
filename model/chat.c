/* SPDX-License-Identifier: Apache-2.0
 * model/chat.c - the chat templates of a few model families, as functions.
 *
 * What each writes was recorded from the templates themselves
 * (tests/fixtures/chat). All know three roles; tools are not among what is
 * rendered here.
 * Threads: any. */
#include "mb_chat.h"

#include <string.h>

#include "unicode.h"
#include "vocab.h"

/* ---- recognition ---- */

static bool
has(struct mb_slice text, const char *part)
{
    size_t size = strlen(part);
    for (size_t i = 0; i + size <= text.size; i++) {
        if (memcmp(text.data + i, part, size) == 0)
            return true;
    }
    return false;
}

static const char smollm2_system[] = "You are a helpful AI assistant named "
                                     "SmolLM, trained by Hugging Face";
static const char qwen2_system[] = "You are a helpful assistant.";
static const char qwen25_system[] =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/* Of a template with <|im_start|>. */
static bool
find_chatml(struct mb_slice t, mb_chat_family *out)
{
    if (has(t, "enable_thinking")) {
        *out = MB_CHAT_QWEN3;
        /* Qwen 3.5 and others open the answer with <think>. */
        return has(t, "last_query_index") &&
               has(t, "enable_thinking is false") && !has(t, "'<think>\\n'");
    }
    /* Others think, too, or change what they are given. */
    if (has(t, "think>") || has(t, "bos_token") || has(t, "trim") ||
        has(t, "strip")) {
        return false;
    }
    if (has(t, qwen25_system))
        *out = MB_CHAT_QWEN25;
    else if (has(t, smollm2_system))
        *out = MB_CHAT_SMOLLM2;
    else if (has(t, qwen2_system))
        *out = MB_CHAT_QWEN2;
    else
        *out = MB_CHAT_CHATML;
    /* One with a system message that we do not know. */
    return *out != MB_CHAT_CHATML || !has(t, "You are");
}

static bool
find_family(struct mb_slice t, mb_chat_family *out)
{
    if (has(t, "<|im_start|>") && has(t, "<|im_end|>"))
        return find_chatml(t, out);
    if (has(t, "<|start_header_id|>") && has(t, "<|eot_id|>")) {
        *out = MB_CHAT_LLAMA3;
        /* 3.1 and later write the date. */
        return has(t, "bos_token") && !has(t, "Knowledge Date") &&
               !has(t, "strftime") && !has(t, "You are");
    }
    if (has(t, "<|user|>") && has(t, "<|assistant|>") && has(t, "eos_token") &&
        !has(t, "<|end|>") && !has(t, "bos_token") && !has(t, "You are")) {
        *out = MB_CHAT_ZEPHYR;
        return true;
    }
    return false;
}

mb_status
mb_chat_open(const struct mb_gguf *gguf, const struct mb_tokenizer *tok,
    struct mb_chat *out, struct mb_error *err)
{
    struct mb_slice t = {0};
    mb_chat_family family = MB_CHAT_CHATML;
    mb_status st = mb_gguf_str(gguf, "tokenizer.chat_template", &t, err);
    if (st != MB_OK)
        return st == MB_ERR_BAD_ARG ? MB_ERR_CORRUPT : st;
    if (!find_family(t, &family))
        return mb_error_set(err, MB_ERR_NOT_IMPLEMENTED,
            "chat template is of no known family, it begins: %.*s",
            (int)(t.size < 60 ? t.size : 60), (const char *)t.data);
    *out = (struct mb_chat){.family = family};
    out->eos = mb_tokenizer_piece(tok, mb_tokenizer_eos(tok));
    if (family == MB_CHAT_LLAMA3 && !mb_tokenizer_adds_bos(tok))
        out->bos = mb_tokenizer_piece(tok, mb_tokenizer_bos(tok));
    return MB_OK;
}

const char *
mb_chat_family_name(mb_chat_family family)
{
    static const char *const names[] = {
        "chatml", "smollm2", "qwen2", "qwen2.5", "qwen3", "zephyr", "llama3"};
    MB_ASSERT((size_t)family < sizeof(names) / sizeof(names[0]));
    return names[family];
}

/* ---- writing ---- */

/* Keeps the first failure. */
struct page {
    struct mb_buffer *text;
    struct mb_buffer *plain;
    mb_status status;
};

static void
put_slice(struct page *p, struct mb_slice s)
{
    if (p->status == MB_OK && s.size > 0)
        p->status = mb_buffer_append(p->text, s.data, s.size);
}

static void
put(struct page *p, const char *s)
{
    put_slice(p, mb_slice_cstr(s));
}

/* What a message says: never a control token. */
static void
put_plain(struct page *p, struct mb_slice s)
{
    size_t start = p->text->size;
    put_slice(p, s);
    if (p->status == MB_OK && p->text->size > UINT32_MAX)
        p->status = MB_ERR_TOO_LARGE;
    if (p->status != MB_OK || s.size == 0)
        return;
    struct mb_span span = {(uint32_t)start, (uint32_t)p->text->size, 0};
    p->status = mb_buffer_append(p->plain, &span, sizeof(span));
}

static bool
is_role(const struct mb_chat_message *m, const char *role)
{
    return mb_slice_equal(m->role, mb_slice_cstr(role));
}

static struct mb_slice
part(struct mb_slice s, size_t start, size_t end)
{
    return mb_slice_of(s.data + start, end - start);
}

/* Without the line ends in front, or at the end. */
static struct mb_slice
strip_left(struct mb_slice s)
{
    size_t start = 0;
    while (start < s.size && s.data[start] == '\n')
        start++;
    return part(s, start, s.size);
}

static struct mb_slice
strip_right(struct mb_slice s)
{
    size_t end = s.size;
    while (end > 0 && s.data[end - 1] == '\n')
        end--;
    return part(s, 0, end);
}

/* As Python's strip(): of the spaces of Unicode, and the separators of ASCII
 * that it takes for such. */
static bool
is_space(const uint8_t *p, size_t size)
{
    uint32_t code = p[0];
    if (size == 1)
        return code == ' ' || (code >= '\t' && code <= '\r') ||
               (code >= 0x1c && code <= 0x1f);
    if (size == 2)
        code = (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    else if (size == 3)
        code = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    return size < 4 && unicode_class_of(code) == UNICODE_SPACE;
}

static struct mb_slice
trim(struct mb_slice s)
{
    size_t start = 0;
    size_t end = s.size;
    while (start < end) {
        size_t size = char_size(s.data + start, end - start);
        if (!is_space(s.data + start, size))
            break;
        start += size;
    }
    while (end > start) {
        size_t size = 1;
        while (size < 4 && size < end - start &&
               (s.data[end - size] & 0xc0) == 0x80)
            size++;
        if (!is_space(s.data + end - size, size))
            break;
        end -= size;
    }
    return part(s, start, end);
}

/* Where a mark stands first, or last; SIZE_MAX if nowhere. */
static size_t
find_mark(struct mb_slice s, const char *mark, bool last)
{
    size_t size = strlen(mark);
    size_t found = SIZE_MAX;
    for (size_t i = 0; i + size <= s.size; i++) {
        if (memcmp(s.data + i, mark, size) == 0) {
            found = i;
            if (!last)
                break;
        }
    }
    return found;
}

/* ---- chatml ---- */

static void
put_chatml(struct page *p, struct mb_slice role, struct mb_slice content)
{
    put(p, "<|im_start|>");
    put_slice(p, role);
    put(p, "\n");
    put_plain(p, content);
    put(p, "<|im_end|>\n");
}

static void
render_chatml(struct page *p, const char *system,
    const struct mb_chat_message *m, size_t n, const struct mb_chat_options *o)
{
    if (system && !is_role(&m[0], "system")) {
        put(p, "<|im_start|>system\n");
        put(p, system);
        put(p, "<|im_end|>\n");
    }
    for (size_t i = 0; i < n; i++)
        put_chatml(p, m[i].role, m[i].content);
    if (!o->is_closed)
        put(p, "<|im_start|>assistant\n");
}

/* ---- qwen 3 ---- */

static bool
is_tool_response(struct mb_slice s)
{
    static const char head[] = "<tool_response>";
    static const char tail[] = "</tool_response>";
    return s.size >= sizeof(tail) - 1 &&
           memcmp(s.data, head, sizeof(head) - 1) == 0 &&
           memcmp(s.data + s.size - (sizeof(tail) - 1), tail,
               sizeof(tail) - 1) == 0;
}

/* Thoughts stay only in messages behind the last question. */
static void
put_qwen3_answer(
    struct page *p, struct mb_slice content, bool is_recent, bool is_last)
{
    struct mb_slice thought = {NULL, 0};
    size_t first = find_mark(content, "</think>", false);
    if (first != SIZE_MAX) {
        size_t last = find_mark(content, "</think>", true);
        thought = strip_right(part(content, 0, first));
        size_t open = find_mark(thought, "<think>", true);
        if (open != SIZE_MAX)
            thought = part(thought, open + strlen("<think>"), thought.size);
        thought = strip_left(thought);
        content =
            strip_left(part(content, last + strlen("</think>"), content.size));
    }
    put(p, "<|im_start|>assistant\n");
    if (is_recent && (is_last || thought.size > 0)) {
        put(p, "<think>\n");
        put_plain(p, strip_right(strip_left(thought)));
        put(p, "\n</think>\n\n");
        content = strip_left(content);
    }
    put_plain(p, content);
    put(p, "<|im_end|>\n");
}

static void
render_qwen3(struct page *p, const struct mb_chat_message *m, size_t n,
    const struct mb_chat_options *o)
{
    size_t question = n - 1;
    for (size_t i = n; i-- > 0;) {
        if (is_role(&m[i], "user") && !is_tool_response(m[i].content)) {
            question = i;
            break;
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (is_role(&m[i], "assistant"))
            put_qwen3_answer(p, m[i].content, i > question, i + 1 == n);
        else
            put_chatml(p, m[i].role, m[i].content);
    }
    if (!o->is_closed)
        put(p, "<|im_start|>assistant\n");
    if (!o->is_closed && o->no_thinking)
        put(p, "<think>\n\n</think>\n\n");
}

/* ---- others ---- */

static void
render_zephyr(struct page *p, const struct mb_chat *chat,
    const struct mb_chat_message *m, size_t n, const struct mb_chat_options *o)
{
    for (size_t i = 0; i < n; i++) {
        put(p, "<|");
        put_slice(p, m[i].role);
        put(p, "|>\n");
        put_plain(p, m[i].content);
        put_slice(p, chat->eos);
        put(p, "\n");
    }
    if (!o->is_closed)
        put(p, "<|assistant|>\n");
}

static void
render_llama3(struct page *p, const struct mb_chat *chat,
    const struct mb_chat_message *m, size_t n, const struct mb_chat_options *o)
{
    put_slice(p, chat->bos);
    for (size_t i = 0; i < n; i++) {
        put(p, "<|start_header_id|>");
        put_slice(p, m[i].role);
        put(p, "<|end_header_id|>\n\n");
        put_plain(p, trim(m[i].content));
        put(p, "<|eot_id|>");
    }
    if (!o->is_closed)
        put(p, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

/* ---- all ---- */

static mb_status
check_messages(const struct mb_chat_message *m, size_t n, struct mb_error *err)
{
    if (n == 0)
        return mb_error_set(err, MB_ERR_BAD_ARG, "no messages");
    for (size_t i = 0; i < n; i++) {
        if (!is_role(&m[i], "system") && !is_role(&m[i], "user") &&
            !is_role(&m[i], "assistant")) {
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "message %zu: role %.*s, not system, user or assistant", i,
                (int)(m[i].role.size < 40 ? m[i].role.size : 40),
                (const char *)m[i].role.data);
        }
    }
    return MB_OK;
}

mb_status
mb_chat_render(const struct mb_chat *chat,
    const struct mb_chat_message *messages, size_t n,
    const struct mb_chat_options *opt, struct mb_buffer *text,
    struct mb_buffer *plain, struct mb_error *err)
{
    static const char *const systems[] = {
        NULL, smollm2_system, qwen2_system, qwen25_system};
    struct page p = {text, plain, MB_OK};
    mb_status st = check_messages(messages, n, err);
    if (st != MB_OK)
        return st;
    switch (chat->family) {
    case MB_CHAT_CHATML:
    case MB_CHAT_SMOLLM2:
    case MB_CHAT_QWEN2:
    case MB_CHAT_QWEN25:
        render_chatml(&p, systems[chat->family], messages, n, opt);
        break;
    case MB_CHAT_QWEN3:
        render_qwen3(&p, messages, n, opt);
        break;
    case MB_CHAT_ZEPHYR:
        render_zephyr(&p, chat, messages, n, opt);
        break;
    case MB_CHAT_LLAMA3:
        render_llama3(&p, chat, messages, n, opt);
        break;
    }
    if (p.status != MB_OK)
        mb_error_set(err, p.status, "chat: %zu messages: %s", n,
            mb_status_text(p.status));
    return p.status;
}
