/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_model_chat.c - chat templates: recognised and rendered.
 *
 * Judge: what the templates themselves gave, recorded in fixtures/chat. */
#include "mb_test_gguf.h"

#include "mb_chat.h"

#define MAX_MESSAGES 8

/* A file with this template, eos "</s>" and bos "<|begin_of_text|>". */
static void
chat_file(struct test_gguf *g, const char *source)
{
    static const struct test_piece pieces[] = {{"<|im_end|>", 0, TEST_CONTROL},
        {"<|im_start|>", 0, TEST_CONTROL}, {"</s>", 0, TEST_CONTROL},
        {"<|begin_of_text|>", 0, TEST_CONTROL}};
    struct test_bpe v = {"gpt-2", NULL, 0, pieces, 4};
    test_bpe_file(g, &v);
    mb_buffer_clear(&g->keys);
    test_put(&g->keys, g->file.data + 24, g->file.size - 24);
    g->n_keys -= 2; // bos and eos come anew, as the last two
    g->keys.size -= 2 * (8 + strlen("tokenizer.ggml.bos_token_id") + 8);
    test_gguf_u32(g, "tokenizer.ggml.bos_token_id", TEST_FIRST_MERGE + 3);
    test_gguf_u32(g, "tokenizer.ggml.eos_token_id", TEST_FIRST_MERGE + 2);
    if (source)
        test_gguf_str(g, "tokenizer.chat_template", source);
    test_gguf_end(g);
}

struct opened {
    struct test_gguf file;
    struct mb_tokenizer *tok;
    struct mb_chat chat;
    mb_status status;
    struct mb_error err;
};

static void
open_chat(struct opened *o, const char *source)
{
    struct mb_gguf *gguf = NULL;
    chat_file(&o->file, source);
    assert_ok(mb_gguf_open_memory(mb_buffer_slice(&o->file.file), &gguf, NULL));
    assert_status(MB_OK, mb_tokenizer_new(gguf, &o->tok, &o->err), &o->err);
    o->status = mb_chat_open(gguf, o->tok, &o->chat, &o->err);
    mb_gguf_close(gguf);
}

static void
close_chat(struct opened *o)
{
    mb_tokenizer_free(o->tok);
    test_gguf_free(&o->file);
}

/* ---- records ---- */

struct record {
    char template[32];
    struct mb_chat_options opt;
    struct mb_chat_message messages[MAX_MESSAGES];
    size_t n;
    struct mb_slice text;
};

/* Take the escapes out of a value, in place. */
static struct mb_slice
value_of(char *line, char *end)
{
    char *open = strchr(line, '"') + 1;
    char *out = open;
    assert_true(end > open && end[-1] == '"');
    for (char *c = open; c < end - 1; c++) {
        if (*c == '\\') {
            c++;
            *c = *c == 'n' ? '\n' : *c == 't' ? '\t' : *c == 'r' ? '\r' : *c;
        }
        *out++ = *c;
    }
    return mb_slice_of(open, (size_t)(out - open));
}

static void
take_line(struct record *r, char *line, char *end)
{
    struct mb_slice key = mb_slice_of(line, (size_t)(strchr(line, ' ') - line));
    struct mb_slice value = value_of(line, end);
    bool is_set = value.size > 0 && value.data[0] == '1';
    if (mb_slice_equal(key, mb_slice_cstr("template"))) {
        snprintf(r->template, sizeof(r->template), "%.*s", (int)value.size,
            (const char *)value.data);
    } else if (mb_slice_equal(key, mb_slice_cstr("add_generation_prompt"))) {
        r->opt.is_closed = !is_set;
    } else if (mb_slice_equal(key, mb_slice_cstr("enable_thinking"))) {
        r->opt.no_thinking = !is_set;
    } else if (mb_slice_equal(key, mb_slice_cstr("text"))) {
        r->text = value;
    } else {
        assert_true(r->n < MAX_MESSAGES);
        r->messages[r->n++] = (struct mb_chat_message){key, value};
    }
}

/* Every byte of a span comes from a message, and every control token that a
 * message names lies in one. */
static void
check_spans(
    const struct record *r, struct mb_slice text, const struct mb_buffer *plain)
{
    uint32_t at = 0;
    for (size_t i = 0; i < plain->size; i += sizeof(struct mb_span)) {
        struct mb_span s;
        bool found = false;
        memcpy(&s, plain->data + i, sizeof(s));
        assert_true(s.start >= at && s.end > s.start && s.end <= text.size);
        at = s.end;
        size_t size = s.end - s.start;
        for (size_t k = 0; k < r->n && !found; k++) {
            struct mb_slice c = r->messages[k].content;
            for (size_t p = 0; p + size <= c.size && !found; p++)
                found = memcmp(c.data + p, text.data + s.start, size) == 0;
        }
        assert_true(found);
    }
}

static void
check_record(const struct record *r)
{
    char path[MB_TEST_PATH];
    char name[64];
    size_t size = 0;
    struct opened o;
    struct mb_buffer text;
    struct mb_buffer plain;
    snprintf(name, sizeof(name), "chat/%s.jinja", r->template);
    char *source =
        (char *)mb_test_read_file(mb_test_fixture(name, path), &size);
    open_chat(&o, source);
    assert_status(MB_OK, o.status, &o.err);
    mb_buffer_init(&text, 1u << 20);
    mb_buffer_init(&plain, 1u << 20);
    assert_status(MB_OK,
        mb_chat_render(
            &o.chat, r->messages, r->n, &r->opt, &text, &plain, &o.err),
        &o.err);
    if (!mb_slice_equal(r->text, mb_buffer_slice(&text)))
        fail_msg("%s: wanted \"%.*s\", got \"%.*s\"", r->template,
            (int)r->text.size, (const char *)r->text.data, (int)text.size,
            (const char *)text.data);
    check_spans(r, mb_buffer_slice(&text), &plain);
    mb_buffer_fini(&text);
    mb_buffer_fini(&plain);
    close_chat(&o);
    mb_free(source);
}

static void
test_render_when_recorded_then_equal(void **state)
{
    char path[MB_TEST_PATH];
    size_t size = 0;
    size_t n = 0;
    struct record r = {.n = 0};
    char *text = (char *)mb_test_read_file(
        mb_test_fixture("chat/recorded.txt", path), &size);
    MB_TEST_UNUSED(state);
    for (char *line = text; line < text + size;) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        if (end == line && r.text.data) {
            check_record(&r);
            r = (struct record){.n = 0};
            n++;
        } else if (end > line && *line != '#') {
            take_line(&r, line, end);
        }
        line = end + 1;
    }
    assert_true(n > 150);
    mb_free(text);
}

/* ---- recognition ---- */

static void
test_open_when_known_then_its_family(void **state)
{
    static const char *const families[] = {
        "chatml", "smollm2", "qwen2", "qwen25", "qwen3", "zephyr", "llama3"};
    static const char *const names[] = {
        "chatml", "smollm2", "qwen2", "qwen2.5", "qwen3", "zephyr", "llama3"};
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < 7; i++) {
        char path[MB_TEST_PATH];
        char name[64];
        size_t size = 0;
        struct opened o;
        snprintf(name, sizeof(name), "chat/%s.jinja", families[i]);
        char *source =
            (char *)mb_test_read_file(mb_test_fixture(name, path), &size);
        open_chat(&o, source);
        assert_status(MB_OK, o.status, &o.err);
        assert_int_equal(i, o.chat.family);
        assert_string_equal(names[i], mb_chat_family_name(o.chat.family));
        close_chat(&o);
        mb_free(source);
    }
}

static void
test_open_when_unknown_then_refused_by_its_beginning(void **state)
{
    static const char *const unknown[] = {"",
        "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
        "{{ bos_token }}<|im_start|>user<|im_end|>",
        "<|im_start|>system\nYou are Phi.<|im_end|><|im_start|>user",
        "<|im_start|>assistant\n<think>\n<|im_end|>",
        "<|im_start|>{{ m.content | trim }}<|im_end|>",
        "{{ bos_token }}<|start_header_id|><|eot_id|>Cutting Knowledge Date:",
        "<|user|><|end|><|assistant|>{{ eos_token }}"};
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        struct opened o;
        open_chat(&o, unknown[i]);
        assert_status(MB_ERR_NOT_IMPLEMENTED, o.status, &o.err);
        assert_error_has(o.err, "it begins: ");
        close_chat(&o);
    }
}

static void
test_open_when_no_template_then_not_found(void **state)
{
    struct opened o;
    MB_TEST_UNUSED(state);
    open_chat(&o, NULL);
    assert_status(MB_ERR_NOT_FOUND, o.status, &o.err);
    assert_error_has(o.err, "chat_template");
    close_chat(&o);
}

/* ---- errors and tokens ---- */

static void
test_render_when_bad_messages_then_bad_arg(void **state)
{
    struct mb_chat chat = {.family = MB_CHAT_CHATML};
    struct mb_chat_options opt = {.is_closed = false};
    struct mb_chat_message tool = {mb_slice_cstr("tool"), mb_slice_cstr("5")};
    struct mb_buffer text;
    struct mb_buffer plain;
    struct mb_error err;
    MB_TEST_UNUSED(state);
    mb_buffer_init(&text, 100);
    mb_buffer_init(&plain, 100);
    assert_status(MB_ERR_BAD_ARG,
        mb_chat_render(&chat, NULL, 0, &opt, &text, &plain, &err), &err);
    assert_error_has(err, "no messages");
    assert_status(MB_ERR_BAD_ARG,
        mb_chat_render(&chat, &tool, 1, &opt, &text, &plain, &err), &err);
    assert_error_has(err, "message 0: role tool");
    struct mb_chat_message user = {
        mb_slice_cstr("user"), mb_slice_cstr("what does not fit in a hundred")};
    struct mb_chat_message many[4] = {user, user, user, user};
    assert_status(MB_ERR_TOO_LARGE,
        mb_chat_render(&chat, many, 4, &opt, &text, &plain, &err), &err);
    mb_buffer_fini(&text);
    mb_buffer_fini(&plain);
}

/* A message that names a control token cannot make one. */
static void
test_render_when_message_names_control_tokens_then_plain(void **state)
{
    struct opened o;
    struct mb_chat_options opt = {.is_closed = true};
    struct mb_chat_message m = {
        mb_slice_cstr("user"), mb_slice_cstr("a<|im_end|>b")};
    struct mb_buffer text;
    struct mb_buffer plain;
    struct mb_buffer ids;
    size_t n_ends = 0;
    MB_TEST_UNUSED(state);
    open_chat(&o, "{{ m }}<|im_start|><|im_end|>");
    assert_status(MB_OK, o.status, &o.err);
    mb_buffer_init(&text, 1000);
    mb_buffer_init(&plain, 1000);
    mb_buffer_init(&ids, 1000);
    assert_ok(mb_chat_render(&o.chat, &m, 1, &opt, &text, &plain, NULL));
    struct mb_prompt prompt = {mb_buffer_slice(&text), MB_PROMPT_SPECIAL,
        (const struct mb_span *)(const void *)plain.data,
        plain.size / sizeof(struct mb_span)};
    assert_ok(mb_tokenizer_encode_prompt(o.tok, NULL, &prompt, &ids, NULL));
    for (size_t i = 0; i < ids.size; i += sizeof(mb_token_id)) {
        mb_token_id id = 0;
        memcpy(&id, ids.data + i, sizeof(id));
        n_ends += id == TEST_FIRST_MERGE;
    }
    assert_int_equal(1, n_ends);
    mb_buffer_fini(&text);
    mb_buffer_fini(&plain);
    mb_buffer_fini(&ids);
    close_chat(&o);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_render_when_recorded_then_equal),
        cmocka_unit_test(test_open_when_known_then_its_family),
        cmocka_unit_test(test_open_when_unknown_then_refused_by_its_beginning),
        cmocka_unit_test(test_open_when_no_template_then_not_found),
        cmocka_unit_test(test_render_when_bad_messages_then_bad_arg),
        cmocka_unit_test(
            test_render_when_message_names_control_tokens_then_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
