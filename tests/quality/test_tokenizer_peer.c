/* SPDX-License-Identifier: Apache-2.0
 * tests/quality/test_tokenizer_peer.c - the same tokens as llama.cpp.
 *
 * ctest: label=peer;slow timeout=1800
 *
 * Ten megabytes of books, encyclopedia, dictionary, technical text, source
 * code, many scripts, random characters and nasty rows of blanks, digits and
 * signs, cut into texts of a few kilobytes, through every vocabulary that is
 * there: ids must be equal, and decode to the same bytes, but for those that a
 * vocabulary has no token for (as llama.cpp, we pass over them). Then texts with
 * control tokens. Environment:
 *   MB_PEER_LLAMA  a folder where `npm install node-llama-cpp` was done
 *   MB_SHARED      has data/train/NAME.jsonl.zst and models/vocab/NAME.gguf
 *   MB_VOCABS      a further folder of NAME.gguf (optional)
 *   MB_PEER_BYTES  how much text (optional)
 *   MB_PEER_ONLY   the name of one vocabulary (optional) */
#include "mb_test_gguf.h"

#include <inttypes.h>

#define MAX_TEXTS (256u << 20)
#define TEXT_SIZE 8000

/* ---- texts ---- */

struct corpus {
    struct mb_buffer bytes; /* count and bytes of each text */
    struct mb_rng rng;
};

static void
add_text(struct corpus *c, struct mb_slice text)
{
    assert_true(mb_utf8_is_valid(text, NULL));
    test_put_u32(&c->bytes, (uint32_t)text.size);
    test_put(&c->bytes, text.data, text.size);
}

/* A long text, cut at characters into short ones of random sizes. */
static void
add_long_text(struct corpus *c, struct mb_slice text)
{
    for (size_t pos = 0; pos < text.size;) {
        size_t end = pos + 1 + mb_rng_below(&c->rng, TEXT_SIZE);
        end = end < text.size ? end : text.size;
        while (end < text.size && (text.data[end] & 0xc0) == 0x80)
            end++;
        add_text(c, mb_slice_of(text.data + pos, end - pos));
        pos = end;
    }
}

/* Undo the escapes of JSON that matter here. */
static void
unescape(struct mb_slice json, struct mb_buffer *out)
{
    for (size_t i = 0; i < json.size; i++) {
        uint8_t b = json.data[i];
        if (b == '\\' && i + 1 < json.size) {
            b = json.data[++i];
            b = b == 'n' ? '\n' : b == 't' ? '\t' : b;
        }
        test_put_u8(out, b);
    }
}

static void
add_command(struct corpus *c, const char *command, bool is_json)
{
    static char part[1 << 16];
    struct mb_buffer raw;
    struct mb_buffer text;
    mb_buffer_init(&raw, MAX_TEXTS);
    mb_buffer_init(&text, MAX_TEXTS);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    for (size_t n = fread(part, 1, sizeof(part), f); n > 0;
         n = fread(part, 1, sizeof(part), f)) {
        test_put(&raw, part, n);
    }
    pclose(f);
    if (raw.size == 0)
        fail_msg("no output: %s", command);
    if (is_json)
        unescape(mb_buffer_slice(&raw), &text);
    else
        test_put(&text, raw.data, raw.size);
    mb_buffer_clear(&raw);
    assert_ok(mb_utf8_repair(mb_buffer_slice(&text), &raw));
    add_long_text(c, mb_buffer_slice(&raw));
    mb_buffer_fini(&raw);
    mb_buffer_fini(&text);
}

static void
put_code(struct mb_buffer *out, uint32_t code)
{
    uint8_t p[4] = {0};
    size_t n = 1;
    if (code < 0x80) {
        p[0] = (uint8_t)code;
    } else if (code < 0x800) {
        p[0] = (uint8_t)(0xc0 | code >> 6);
        n = 2;
    } else if (code < 0x10000) {
        p[0] = (uint8_t)(0xe0 | code >> 12);
        n = 3;
    } else {
        p[0] = (uint8_t)(0xf0 | code >> 18);
        n = 4;
    }
    for (size_t i = 1; i < n; i++)
        p[i] = (uint8_t)(0x80 | (code >> 6 * (n - 1 - i) & 0x3f));
    test_put(out, p, n);
}

/* Words of one script after the other. */
static void
add_scripts(struct corpus *c, size_t size)
{
    static const uint32_t scripts[][2] = {{0x4e00, 0x9fff}, {0x3040, 0x30ff},
        {0xac00, 0xd7a3}, {0x400, 0x4ff}, {0x370, 0x3ff}, {0x590, 0x5ff},
        {0x600, 0x6ff}, {0x900, 0x97f}, {0xe00, 0xe7f}, {0x1f300, 0x1faff},
        {0xc0, 0x24f}, {0x1e00, 0x1eff}, {0x300, 0x36f}, {0x2000, 0x206f},
        {0x3000, 0x303f}, {0xff00, 0xffef}, {0x20000, 0x2a6df}, {'a', 'z'},
        {'A', 'Z'}, {'0', '9'}, {0x660, 0x669}, {0x2190, 0x2bff}};
    struct mb_buffer text;
    mb_buffer_init(&text, MAX_TEXTS);
    while (text.size < size) {
        const uint32_t *s =
            scripts[mb_rng_below(&c->rng, sizeof(scripts) / sizeof(*scripts))];
        for (size_t n = 1 + mb_rng_below(&c->rng, 12); n > 0; n--)
            put_code(
                &text, s[0] + (uint32_t)mb_rng_below(&c->rng, s[1] - s[0] + 1));
        if (mb_rng_below(&c->rng, 3) > 0)
            test_put_u8(&text, ' ');
    }
    add_long_text(c, mb_buffer_slice(&text));
    mb_buffer_fini(&text);
}

/* Any characters: of all planes, and of the first two. */
static void
add_any(struct corpus *c, size_t size)
{
    struct mb_buffer text;
    mb_buffer_init(&text, MAX_TEXTS);
    while (text.size < size) {
        uint32_t max = mb_rng_below(&c->rng, 3) == 0 ? 0x110000 : 0x10000;
        uint32_t code = (uint32_t)mb_rng_below(&c->rng, max);
        if (code < 0xd800 || code > 0xdfff)
            put_code(&text, code);
        if (mb_rng_below(&c->rng, 4) == 0)
            test_put_u8(&text, (uint8_t)mb_rng_below(&c->rng, 128));
    }
    add_long_text(c, mb_buffer_slice(&text));
    mb_buffer_fini(&text);
}

/* Random bytes, repaired. */
static void
add_bytes(struct corpus *c, size_t size)
{
    struct mb_buffer raw;
    struct mb_buffer text;
    mb_buffer_init(&raw, MAX_TEXTS);
    mb_buffer_init(&text, MAX_TEXTS);
    while (raw.size < size)
        test_put_u8(&raw, (uint8_t)mb_rng_below(&c->rng, 256));
    assert_ok(mb_utf8_repair(mb_buffer_slice(&raw), &text));
    add_long_text(c, mb_buffer_slice(&text));
    mb_buffer_fini(&raw);
    mb_buffer_fini(&text);
}

/* What rules of words look at: blanks, line ends, signs, digits, quotes. */
static void
add_nasty(struct corpus *c, size_t size)
{
    static const char *const parts[] = {" ", " ", "  ", "   ", "\t", "\n",
        "\r\n", "\r", "\n\n", "\u00a0", "\u2003", "\u3000", "\xc2\x85", "\v",
        "\f", "\u200b", "'s", "'S", "'t", "'re", "'VE", "'ll", "'d", "'", "''",
        "\u2019s", "1", "12", "123", "1234567", "\u0661\u0662", "\u00bd",
        "\u2167", "\u0967", "a", "the", "World", "\u00e9", "e\u0301", "\u01c5",
        "\u4e16\u754c", "\u3002", "\u3001", "\uff01", "\u1ec7", "\u0915\u094d",
        ".", ",", "!", "?", "...", "--", "$", "+", "<", "=", ">", "^", "~", "|",
        "`", "_", "(", ")", "[", "]", "{", "}", "\\", "/", "@", "#", "&", "*",
        "%", "\"", "\u20ac", "\u00ac", "\u2192", "\U0001f999",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0300", "\ufeff",
        "\ufffd", "\x01", "\x7f", "\u0e01\u0e33", "\u2ffc", "\U0002ebf0"};
    struct mb_buffer text;
    mb_buffer_init(&text, MAX_TEXTS);
    while (text.size < size) {
        const char *part =
            parts[mb_rng_below(&c->rng, sizeof(parts) / sizeof(*parts))];
        for (size_t n = mb_rng_below(&c->rng, 8) == 0 ? 4 : 1; n > 0; n--)
            test_put(&text, part, strlen(part));
    }
    add_long_text(c, mb_buffer_slice(&text));
    mb_buffer_fini(&text);
}

static void
make_corpus(struct corpus *c, const char *shared, size_t size)
{
    static const char *const names[] = {"books", "wiki", "tech", "dict"};
    char command[1024];
    mb_buffer_init(&c->bytes, MAX_TEXTS);
    mb_rng_init(&c->rng, mb_test_seed());
    for (size_t i = 0; i < 4; i++) {
        snprintf(command, sizeof(command),
            "zstd -dc '%s/data/train/%s.jsonl.zst' | head -c %zu", shared,
            names[i], size * 15 / 100);
        add_command(c, command, true);
    }
    snprintf(command, sizeof(command),
        "cat '%s'/*/*.[ch] '%s'/tests/*/*.py '%s'/tools/*/* 2>/dev/null |"
        " head -c %zu",
        MB_SOURCE_DIR, MB_SOURCE_DIR, MB_SOURCE_DIR, size * 13 / 100);
    add_command(c, command, false);
    add_scripts(c, size * 10 / 100);
    add_any(c, size * 5 / 100);
    add_bytes(c, size * 3 / 100);
    add_nasty(c, size * 10 / 100);
}

/* Short texts with the names of control tokens in them. */
static void
make_prompts(struct corpus *c, const struct mb_tokenizer *tok)
{
    static const char *const parts[] = {"Hello", " world", " ", "\n", "\n\n",
        "<", "|", "im_start", "12", "\u4e16", "user\n", "  "};
    struct mb_buffer text;
    size_t n_vocab = mb_tokenizer_n_vocab(tok);
    mb_buffer_init(&text, MAX_TEXTS);
    mb_buffer_clear(&c->bytes);
    for (int i = 0; i < 4000; i++) {
        mb_buffer_clear(&text);
        for (size_t n = 1 + mb_rng_below(&c->rng, 12); n > 0; n--) {
            const char *part = parts[mb_rng_below(&c->rng, 12)];
            /* Special ones stand among the first or the last. */
            mb_token_id id = (mb_token_id)mb_rng_below(&c->rng, 40);
            if (mb_rng_below(&c->rng, 2) == 0)
                id = (mb_token_id)n_vocab - 1 - id;
            struct mb_slice piece = mb_tokenizer_piece(tok, id);
            if (mb_rng_below(&c->rng, 2) == 0 && piece.size > 4 &&
                mb_utf8_is_valid(piece, NULL))
                test_put(&text, piece.data, piece.size);
            else
                test_put(&text, part, strlen(part));
        }
        add_text(c, mb_buffer_slice(&text));
    }
    mb_buffer_fini(&text);
}

/* ---- comparing ---- */

struct round {
    const char *peer;
    const char *name;
    char vocabulary[MB_TEST_PATH];
    struct mb_test_dir dir;
    bool is_special;
    size_t n_texts;
    size_t n_skipped;
    size_t n_tokens;
    size_t n_bytes;
    size_t n_different;
    bool has[256]; /* bytes that the vocabulary has a token for */
    size_t n_lost; /* bytes */
};

static bool
holds(struct mb_slice text, const char *part)
{
    size_t size = strlen(part);
    for (size_t i = 0; i + size <= text.size; i++) {
        if (memcmp(text.data + i, part, size) == 0)
            return true;
    }
    return false;
}

/* Where the llama tokenizer is known to differ: tokenizer.c says why. */
static bool
is_known_to_differ(struct mb_slice text)
{
    static const char *const parts[] = {
        "\u2581", "<s>", "</s>", "<unk>", "<0x", "<|", "[PAD"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (holds(text, parts[i]))
            return true;
    }
    return false;
}

static void
report(struct round *r, struct mb_slice text, const mb_token_id *ours,
    size_t n_ours, const uint8_t *theirs, size_t n_theirs)
{
    size_t i = 0;
    while (i < n_ours && i < n_theirs &&
           (uint32_t)ours[i] == mb_get_le32(theirs + 4 * i))
        i++;
    if (r->n_different++ >= 5)
        return;
    print_message("%s: text %zu (%zu bytes): %zu tokens, llama.cpp %zu; token "
                  "%zu differs:",
        r->name, r->n_texts, text.size, n_ours, n_theirs, i);
    for (size_t k = i; k < i + 6; k++)
        print_message(" %d/%d", k < n_ours ? (int)ours[k] : -1,
            k < n_theirs ? (int)mb_get_le32(theirs + 4 * k) : -1);
    print_message("\n");
    if (text.size < 300)
        print_message("  <<%.*s>>\n", (int)text.size, (const char *)text.data);
}

/* Is this the text, but for bytes that there is no token for? */
static bool
comes_back(const struct round *r, struct mb_slice text, struct mb_slice back)
{
    size_t at = 0;
    for (size_t i = 0; i < text.size; i++) {
        if (at < back.size && back.data[at] == text.data[i])
            at++;
        else if (r->has[text.data[i]])
            return false;
    }
    return at == back.size;
}

static void
check_text(struct round *r, const struct mb_tokenizer *tok,
    struct mb_token_cache *cache, struct mb_slice text, const uint8_t *theirs,
    size_t n_theirs)
{
    struct mb_prompt prompt = {
        .text = text, .flags = r->is_special ? MB_PROMPT_SPECIAL : 0};
    struct mb_buffer ids;
    struct mb_buffer back;
    struct mb_error err;
    mb_buffer_init(&ids, MAX_TEXTS);
    mb_buffer_init(&back, MAX_TEXTS);
    assert_status(MB_OK,
        mb_tokenizer_encode_prompt(tok, cache, &prompt, &ids, &err), &err);
    const mb_token_id *ours = (const mb_token_id *)(const void *)ids.data;
    size_t n = ids.size / sizeof(mb_token_id);
    r->n_tokens += n;
    r->n_bytes += text.size;
    if (n != n_theirs || (n > 0 && memcmp(ours, theirs, 4 * n) != 0))
        report(r, text, ours, n, theirs, n_theirs);
    if (!r->is_special) {
        assert_ok(mb_tokenizer_decode(tok, ours, n, &back, NULL));
        r->n_lost += text.size - back.size;
        if (!comes_back(r, text, mb_buffer_slice(&back)))
            fail_msg("%s: text %zu does not come back", r->name, r->n_texts);
    }
    mb_buffer_fini(&back);
    mb_buffer_fini(&ids);
}

/* Let the peer encode all texts; its ids. */
static uint8_t *
ask_peer(const struct round *r, const struct corpus *c, size_t *size)
{
    char command[4096];
    char in[MB_TEST_PATH];
    char out[MB_TEST_PATH];
    mb_test_path(&r->dir, "texts", in);
    mb_test_path(&r->dir, "ids", out);
    mb_test_write_file(in, c->bytes.data, c->bytes.size);
    snprintf(command, sizeof(command),
        "node '%s/tests/support/peer_tokenize.mjs' '%s' '%s' '%s' '%s' %s"
        " 2>/dev/null",
        MB_SOURCE_DIR, r->peer, r->vocabulary, in, out,
        r->is_special ? "special" : "plain");
    print_message(
        "%s%s: llama.cpp: ", r->name, r->is_special ? ", control tokens" : "");
    fflush(NULL);
    if (system(command) != 0)
        fail_msg("failed: %s", command);
    return mb_test_read_file(out, size);
}

/* Bytes that some token stands for alone. (That of a space may stand for the
 * space that is taken away in front.) */
static void
find_bytes(const struct mb_tokenizer *tok, bool has[256])
{
    struct mb_buffer out;
    mb_buffer_init(&out, 1u << 16);
    memset(has, 0, 256 * sizeof(*has));
    has[' '] = true;
    for (size_t i = 0; i < mb_tokenizer_n_vocab(tok); i++) {
        mb_token_id id = (mb_token_id)i;
        mb_buffer_clear(&out);
        assert_ok(mb_tokenizer_decode(tok, &id, 1, &out, NULL));
        if (out.size == 1)
            has[out.data[0]] = true;
    }
    mb_buffer_fini(&out);
}

static void
compare(struct round *r, const struct mb_tokenizer *tok, struct corpus *c)
{
    struct mb_token_cache *cache = NULL;
    size_t size = 0;
    uint8_t *ids = ask_peer(r, c, &size);
    size_t at = 0;
    bool is_llama = mb_tokenizer_piece(tok, 259).size > 0 &&
                    (strstr(r->name, "spm") || strstr(r->name, "phi-3"));
    assert_ok(mb_token_cache_new(&cache));
    r->n_texts = r->n_skipped = r->n_tokens = r->n_bytes = 0;
    r->n_different = r->n_lost = 0;
    find_bytes(tok, r->has);
    uint64_t start = mb_clock_ns();
    for (size_t p = 0; p < c->bytes.size; r->n_texts++) {
        uint32_t n = mb_get_le32(c->bytes.data + p);
        struct mb_slice text = mb_slice_of(c->bytes.data + p + 4, n);
        uint32_t n_ids = mb_get_le32(ids + at);
        p += 4 + n;
        assert_true(at + 4 + 4 * (size_t)n_ids <= size);
        if (is_llama && !r->is_special && is_known_to_differ(text))
            r->n_skipped++;
        else
            check_text(r, tok, cache, text, ids + at + 4, n_ids);
        at += 4 + 4 * (size_t)n_ids;
    }
    double seconds = (double)(mb_clock_ns() - start) * 1e-9;
    print_message("%s%s: %zu texts, %zu bytes, %zu tokens, %.2f s with decoding"
                  " (%zu texts left out, %zu bytes lost): %zu differ\n",
        r->name, r->is_special ? ", control tokens" : "", r->n_texts,
        r->n_bytes, r->n_tokens, seconds, r->n_skipped, r->n_lost,
        r->n_different);
    assert_int_equal(0, r->n_different);
    mb_token_cache_free(cache);
    mb_free(ids);
}

static const char *const vocabularies[] = {"llama-spm", "phi-3", "gpt-2",
    "llama-bpe", "qwen2", "smollm", "default", "deepseek-coder", "deepseek-llm",
    "falcon", "mpt", "refact", "starcoder"};

/* The file of a vocabulary; false if there is none. */
static bool
find_vocabulary(struct round *r, const char *shared)
{
    const char *more = getenv("MB_VOCABS");
    snprintf(r->vocabulary, sizeof(r->vocabulary),
        "%s/models/vocab/ggml-vocab-%s.gguf", shared, r->name);
    if (!mb_test_exists(r->vocabulary) && more)
        snprintf(r->vocabulary, sizeof(r->vocabulary), "%s/ggml-vocab-%s.gguf",
            more, r->name);
    return mb_test_exists(r->vocabulary);
}

static void
test_encode_when_llama_cpp_is_there_then_equal(void **state)
{
    const char *peer = getenv("MB_PEER_LLAMA");
    const char *shared = getenv("MB_SHARED");
    const char *bytes = getenv("MB_PEER_BYTES");
    const char *only = getenv("MB_PEER_ONLY");
    struct corpus texts;
    struct corpus prompts;
    struct round r = {.peer = peer};
    MB_TEST_UNUSED(state);
    if (!peer || !shared) {
        print_message("MB_PEER_LLAMA or MB_SHARED is not set\n");
        skip();
    }
    r.dir = mb_test_dir_begin();
    make_corpus(&texts, shared, bytes ? strtoull(bytes, NULL, 0) : 10000000u);
    mb_buffer_init(&prompts.bytes, MAX_TEXTS);
    mb_rng_init(&prompts.rng, mb_test_seed());
    for (size_t i = 0; i < sizeof(vocabularies) / sizeof(*vocabularies); i++) {
        r.name = vocabularies[i];
        if (only && strcmp(only, r.name) != 0)
            continue;
        if (!find_vocabulary(&r, shared)) {
            print_message("%s: no file, not compared\n", r.name);
            continue;
        }
        struct mb_tokenizer *tok = test_tokenizer_open(r.vocabulary);
        r.is_special = false;
        compare(&r, tok, &texts);
        /* For phi-3 llama.cpp takes blanks away behind control tokens, because
         * of the model's name. */
        r.is_special = strcmp(r.name, "phi-3") != 0;
        if (r.is_special) {
            make_prompts(&prompts, tok);
            compare(&r, tok, &prompts);
        }
        mb_tokenizer_free(tok);
    }
    mb_buffer_fini(&texts.bytes);
    mb_buffer_fini(&prompts.bytes);
    mb_test_dir_end(&r.dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_when_llama_cpp_is_there_then_equal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
