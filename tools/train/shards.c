/* SPDX-License-Identifier: Apache-2.0
 * tools/train/shards.c - `membank-train shards`: texts to token shards.
 *
 * Each NAME=FILE adds a file, or a folder, to the shard DIR/NAME.mbtok; a name
 * may come again. A document that cannot be read stops the work: what is
 * trained on should be what was asked for.
 * Threads: the main thread. */
#include "train.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "progress.h"
#include "source.h"

#define MAX_SHARDS 64
#define MAX_NAME   40

struct shards_job {
    struct mb_tokenizer *tok;
    struct mb_token_cache *cache;
    struct mb_arena *arena;
    struct mb_buffer tokens;
    struct progress progress;
    uint64_t max_chars; /* 0: all */
    const char *name;
    struct shard_writer *writer;
    uint64_t n_documents;
    uint64_t n_tokens;
    uint64_t n_bytes;
};

static mb_status
add_document(struct shards_job *job, const struct source_document *doc,
    struct mb_error *err)
{
    const struct mb_value *map = NULL;
    mb_arena_reset(job->arena);
    mb_status st =
        mb_wire_parse(doc->msgpack, NULL, true, job->arena, &map, err);
    if (st != MB_OK)
        return st;
    struct mb_slice text =
        train_first_chars(value_str(map, "text"), job->max_chars);
    mb_buffer_clear(&job->tokens);
    st = mb_tokenizer_encode(job->tok, job->cache, text, &job->tokens, err);
    if (st != MB_OK)
        return st;
    size_t n = job->tokens.size / sizeof(struct mb_token);
    job->n_documents++;
    job->n_tokens += n;
    job->n_bytes += text.size;
    return shard_writer_add(job->writer,
        (const struct mb_token *)(const void *)job->tokens.data, n, text.size,
        err);
}

static mb_status
add_files(struct shards_job *job, struct walk_list *files, struct mb_error *err)
{
    struct source *source = NULL;
    struct source_options opt = {0};
    bool more = true;
    mb_status st = source_new(files, &opt, &source, err);
    while (st == MB_OK) {
        struct source_document doc;
        char text[120];
        uint64_t total = source_bytes_total(source);
        st = source_next(source, &doc, &more, err);
        // A bad line is no wrong use of the command.
        if (st == MB_ERR_BAD_ARG)
            st = MB_ERR_BAD_MESSAGE;
        if (st == MB_OK && more)
            st = add_document(job, &doc, err);
        if (st != MB_OK || !more)
            break;
        if (train_is_stopped)
            st = mb_error_set(err, MB_ERR_CANCELLED, "stopped");
        (void)snprintf(text, sizeof text, "%s: %llu documents, %.1fM tokens",
            job->name, (unsigned long long)job->n_documents,
            (double)job->n_tokens / 1e6);
        progress_show(&job->progress,
            total > 0 ? (double)source_bytes_read(source) / (double)total : -1,
            text);
    }
    source_free(source);
    return st;
}

/* Does argument i name this shard? Its file is what follows. */
static const char *
file_of(const struct mb_cli *cli, size_t i, const char *name)
{
    const char *arg = mb_cli_arg(cli, i);
    size_t n = strlen(name);
    return strncmp(arg, name, n) == 0 && arg[n] == '=' ? arg + n + 1 : NULL;
}

/* All files of the shard that argument `first` names, in their order. */
static mb_status
make_shard(struct shards_job *job, const struct mb_cli *cli, size_t first,
    const char *name, struct mb_error *err)
{
    struct walk_list files;
    char path[TRAIN_MAX_PATH];
    char file[MAX_NAME + 16];
    walk_list_init(&files);
    (void)snprintf(file, sizeof file, "%s.mbtok", name);
    mb_status st = train_path(mb_cli_str(cli, "out"), file, path, err);
    for (size_t i = first; st == MB_OK && i < mb_cli_n_args(cli); i++) {
        const char *from = file_of(cli, i, name);
        if (from && strcmp(from, "-") == 0)
            st = walk_add_jsonl(&files, from, err);
        else if (from)
            st = walk_add(&files, from, err);
    }
    if (st == MB_OK)
        st = shard_writer_new(path, job->tok, &job->writer, err);
    job->name = name;
    job->n_documents = job->n_tokens = job->n_bytes = 0;
    if (st == MB_OK)
        st = add_files(job, &files, err);
    if (st == MB_OK) {
        st = shard_writer_finish(job->writer, err);
        job->writer = NULL;
    }
    shard_writer_free(job->writer);
    job->writer = NULL;
    walk_list_fini(&files);
    progress_clear(&job->progress);
    if (st == MB_OK)
        (void)printf("%s: %llu documents, %llu tokens, %.3f bytes a token\n",
            path, (unsigned long long)job->n_documents,
            (unsigned long long)job->n_tokens,
            (double)job->n_bytes / (double)(job->n_tokens + !job->n_tokens));
    return st;
}

/* The name before '='; true if an earlier argument has it, too. */
static mb_status
shard_name(const struct mb_cli *cli, size_t i, char name[MAX_NAME],
    bool *is_done, struct mb_error *err)
{
    const char *arg = mb_cli_arg(cli, i);
    const char *equals = strchr(arg, '=');
    size_t n = equals ? (size_t)(equals - arg) : 0;
    if (n == 0 || n >= MAX_NAME || memchr(arg, '/', n) || equals[1] == '\0')
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "%s: NAME=FILE is wanted, the name without /", arg);
    memcpy(name, arg, n);
    name[n] = '\0';
    *is_done = false;
    for (size_t j = 1; j < i; j++)
        *is_done = *is_done || file_of(cli, j, name) != NULL;
    return MB_OK;
}

static mb_status
make_all(struct shards_job *job, const struct mb_cli *cli, struct mb_error *err)
{
    char name[MAX_NAME];
    bool is_done;
    mb_status st = MB_OK;
    const char *out = mb_cli_str(cli, "out");
    for (size_t i = 1; st == MB_OK && i < mb_cli_n_args(cli); i++)
        st = shard_name(cli, i, name, &is_done, err);
    if (st == MB_OK && mkdir(out, 0777) != 0 && errno != EEXIST)
        st = mb_error_set(
            err, MB_ERR_IO, "make folder %s: %s", out, strerror(errno));
    for (size_t i = 1; st == MB_OK && i < mb_cli_n_args(cli); i++) {
        st = shard_name(cli, i, name, &is_done, err);
        if (st == MB_OK && !is_done)
            st = make_shard(job, cli, i, name, err);
    }
    return st;
}

mb_status
train_shards(const struct mb_cli *cli, struct mb_error *err)
{
    struct shards_job job = {0};
    struct mb_gguf *gguf = NULL;
    if (mb_cli_n_args(cli) < 2 || !mb_cli_has(cli, "out") ||
        !mb_cli_has(cli, "tokenizer"))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "shards wants --out DIR, --tokenizer GGUF and NAME=FILE...");
    mb_buffer_init(&job.tokens, SIZE_MAX);
    progress_init(&job.progress, stderr, mb_cli_has(cli, "quiet"));
    mb_status st =
        mb_cli_u64(cli, "max-chars", 1, UINT64_MAX / 2, &job.max_chars, err);
    if (st == MB_OK)
        st = train_open_vocab(
            mb_cli_str(cli, "tokenizer"), &gguf, &job.tok, err);
    if (st == MB_OK && (st = mb_token_cache_new(&job.cache)) != MB_OK)
        (void)mb_error_set(err, st, "tokenizer");
    job.arena = mb_arena_new(SIZE_MAX);
    if (st == MB_OK && !job.arena)
        st = mb_error_set(err, MB_ERR_NOMEM, "documents");
    if (st == MB_OK)
        st = make_all(&job, cli, err);
    mb_arena_free(job.arena);
    mb_token_cache_free(job.cache);
    mb_tokenizer_free(job.tok);
    mb_gguf_close(gguf);
    mb_buffer_fini(&job.tokens);
    return st;
}
