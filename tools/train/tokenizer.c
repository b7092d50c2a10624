/* SPDX-License-Identifier: Apache-2.0
 * tools/train/tokenizer.c - `membank-train tokenizer`: a vocabulary from texts.
 *
 * SentencePiece's own program, spm_train, does the training: byte-pair encoding
 * with a piece for each byte, digits one by one, spaces kept as they are. Texts
 * go to it a line a sentence, through a temporary file; what it writes is
 * turned into the tokenizer.* keys of GGUF (spm.c). The library would be C++
 * and a dependency of everything; the program is wanted by those who train.
 *
 * The file is read back before it is called done: what our tokenizer refuses is
 * removed.
 * Threads: the main thread. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lines.h"
#include "progress.h"
#include "source.h"
#include "spm.h"

#define SPM_PROGRAM   "spm_train"
#define MAX_SPM_BYTES ((size_t)256 << 20)
#define MAX_FILE      (TOOL_MAX_FOLDER + 16)
#define CONTROLS      "<landmark>,<summary>,<memory>,<query>,<passage>"

extern char **environ;

struct vocab_job {
    char folder[TOOL_MAX_FOLDER]; /* temporary; empty: none */
    char text[MAX_FILE];
    char prefix[MAX_FILE];
    char model[MAX_FILE]; /* what spm_train writes */
    char list[MAX_FILE];
    char log[MAX_FILE];
    uint64_t max_chars;
    uint64_t n_pieces;
    uint64_t n_lines;
    uint64_t n_bytes;
    struct mb_arena *arena;
    struct progress progress;
};

/* ---- sentences ---- */

static mb_status
open_folder(struct vocab_job *job, struct mb_error *err)
{
    mb_status st = tool_temp_folder("membank-train", job->folder, err);
    if (st != MB_OK)
        return st;
    (void)snprintf(job->text, sizeof job->text, "%s/text", job->folder);
    (void)snprintf(job->prefix, sizeof job->prefix, "%s/spm", job->folder);
    (void)snprintf(job->model, sizeof job->model, "%s/spm.model", job->folder);
    (void)snprintf(job->list, sizeof job->list, "%s/spm.vocab", job->folder);
    (void)snprintf(job->log, sizeof job->log, "%s/log", job->folder);
    return MB_OK;
}

static void
close_folder(const struct vocab_job *job)
{
    const char *const files[] = {job->text, job->model, job->list, job->log};
    for (size_t i = 0; job->folder[0] && i < 4; i++)
        (void)unlink(files[i]);
    if (job->folder[0])
        (void)rmdir(job->folder);
}

/* Each line of a text that is not empty. */
static void
put_lines(struct vocab_job *job, struct mb_slice text, FILE *to)
{
    size_t at = 0;
    while (at < text.size) {
        const uint8_t *from = text.data + at;
        const uint8_t *end = memchr(from, '\n', text.size - at);
        size_t n = end ? (size_t)(end - from) : text.size - at;
        if (n > 0 && !memchr(from, '\0', n)) {
            (void)fwrite(from, 1, n, to);
            (void)fputc('\n', to);
            job->n_lines++;
            job->n_bytes += n;
        }
        at += n + 1;
    }
}

static mb_status
put_documents(struct vocab_job *job, struct walk_list *files, FILE *to,
    struct mb_error *err)
{
    struct source *source = NULL;
    struct source_options opt = {0};
    bool more = true;
    mb_status st = source_new(files, &opt, &source, err);
    while (st == MB_OK) {
        struct source_document doc;
        const struct mb_value *map = NULL;
        st = source_next(source, &doc, &more, err);
        // A bad line is no wrong use of the command.
        if (st == MB_ERR_BAD_ARG)
            st = MB_ERR_BAD_MESSAGE;
        if (st != MB_OK || !more)
            break;
        mb_arena_reset(job->arena);
        st = mb_wire_parse(doc.msgpack, NULL, true, job->arena, &map, err);
        if (st == MB_OK)
            put_lines(job,
                train_first_chars(value_str(map, "text"), job->max_chars), to);
        if (st == MB_OK && ferror(to))
            st = mb_error_set(
                err, MB_ERR_NO_SPACE, "write %s: no space", job->text);
        if (st == MB_OK && train_is_stopped)
            st = mb_error_set(err, MB_ERR_CANCELLED, "stopped");
        progress_show(&job->progress, -1, "reading texts");
    }
    source_free(source);
    return st;
}

static mb_status
write_sentences(
    struct vocab_job *job, const struct mb_cli *cli, struct mb_error *err)
{
    struct walk_list files;
    mb_status st = MB_OK;
    walk_list_init(&files);
    for (size_t i = 1; st == MB_OK && i < mb_cli_n_args(cli); i++)
        st = walk_add(&files, mb_cli_arg(cli, i), err);
    FILE *to = st == MB_OK ? fopen(job->text, "w") : NULL;
    if (st == MB_OK && !to)
        st = mb_error_set(
            err, MB_ERR_IO, "open %s: %s", job->text, strerror(errno));
    if (st == MB_OK)
        st = put_documents(job, &files, to, err);
    if (to && fclose(to) != 0 && st == MB_OK)
        st = mb_error_set(
            err, MB_ERR_NO_SPACE, "write %s: %s", job->text, strerror(errno));
    walk_list_fini(&files);
    if (st == MB_OK && job->n_lines == 0)
        st = mb_error_set(err, MB_ERR_BAD_MESSAGE, "the texts are empty");
    return st;
}

/* ---- spm_train ---- */

/* The last line of its log that is not empty: there it says what was wrong. */
static void
last_words(const struct vocab_job *job, char out[200])
{
    char line[400];
    FILE *f = fopen(job->log, "r");
    out[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '\0')
            (void)snprintf(out, 200, "%.199s", line);
    }
    if (f)
        (void)fclose(f);
}

static mb_status
wait_for(pid_t pid, const struct vocab_job *job, struct mb_error *err)
{
    int status = 0;
    char words[200];
    // A signal that came while the texts were read.
    if (train_is_stopped)
        (void)kill(pid, SIGTERM);
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return mb_error_set(err, MB_ERR_IO, "wait for %s: %s", SPM_PROGRAM,
                strerror(errno));
        if (train_is_stopped)
            (void)kill(pid, SIGTERM);
    }
    if (train_is_stopped)
        return mb_error_set(err, MB_ERR_CANCELLED, "stopped");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "%s is not installed (Debian: sentencepiece)", SPM_PROGRAM);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        last_words(job, words);
        return mb_error_set(
            err, MB_ERR_IO, "%s failed: %s", SPM_PROGRAM, words);
    }
    return MB_OK;
}

static mb_status
run_spm(const struct vocab_job *job, struct mb_error *err)
{
    char input[MAX_FILE + 16];
    char prefix[MAX_FILE + 16];
    char size[64];
    // Our rules for text, as the bundled vocabulary was made by.
    const char *argv[] = {SPM_PROGRAM, input, prefix, size, "--model_type=bpe",
        "--byte_fallback=true", "--split_digits=true",
        "--character_coverage=0.9999", "--normalization_rule_name=identity",
        "--remove_extra_whitespaces=false", "--add_dummy_prefix=true",
        "--max_sentence_length=65536", "--control_symbols=" CONTROLS,
        "--num_threads=1", NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid = 0;
    (void)snprintf(input, sizeof input, "--input=%s", job->text);
    (void)snprintf(prefix, sizeof prefix, "--model_prefix=%s", job->prefix);
    (void)snprintf(size, sizeof size, "--vocab_size=%llu",
        (unsigned long long)job->n_pieces);
    int rc = posix_spawn_file_actions_init(&actions);
    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, job->log,
            O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (rc == 0)
        rc = posix_spawn_file_actions_adddup2(
            &actions, STDOUT_FILENO, STDERR_FILENO);
    if (rc == 0)
        rc = posix_spawnp(&pid, SPM_PROGRAM, &actions, NULL,
            (char *const *)(uintptr_t)argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    if (rc == ENOENT)
        return mb_error_set(err, MB_ERR_NOT_FOUND,
            "%s is not installed (Debian: sentencepiece)", SPM_PROGRAM);
    if (rc != 0)
        return mb_error_set(
            err, MB_ERR_IO, "start %s: %s", SPM_PROGRAM, strerror(rc));
    return wait_for(pid, job, err);
}

/* ---- the whole ---- */

/* SentencePiece's file as a vocabulary that is known to load. */
static mb_status
convert(const char *from, const char *to, struct mb_error *err)
{
    struct mb_buffer model;
    struct mb_gguf *gguf = NULL;
    struct mb_tokenizer *tok = NULL;
    mb_buffer_init(&model, MAX_SPM_BYTES);
    mb_status st = file_read(from, &model, err);
    if (st == MB_OK)
        st = spm_to_gguf(mb_buffer_slice(&model), to, err);
    mb_buffer_fini(&model);
    if (st != MB_OK)
        return st;
    st = train_open_vocab(to, &gguf, &tok, err);
    if (st == MB_OK)
        (void)printf("%s: %zu pieces\n", to, mb_tokenizer_n_vocab(tok));
    else
        (void)unlink(to);
    mb_tokenizer_free(tok);
    mb_gguf_close(gguf);
    return st;
}

static mb_status
train_pieces(struct vocab_job *job, const struct mb_cli *cli, const char *out,
    struct mb_error *err)
{
    mb_status st = MB_OK;
    job->arena = mb_arena_new(SIZE_MAX);
    if (!job->arena)
        st = mb_error_set(err, MB_ERR_NOMEM, "texts");
    if (st == MB_OK)
        st = open_folder(job, err);
    if (st == MB_OK)
        st = write_sentences(job, cli, err);
    progress_clear(&job->progress);
    if (st == MB_OK)
        st = run_spm(job, err);
    if (st == MB_OK)
        st = convert(job->model, out, err);
    if (st == MB_OK)
        (void)printf("of %llu lines, %.1f MB\n",
            (unsigned long long)job->n_lines, (double)job->n_bytes / 1e6);
    close_folder(job);
    mb_arena_free(job->arena);
    return st;
}

mb_status
train_tokenizer(const struct mb_cli *cli, struct mb_error *err)
{
    struct vocab_job job = {.n_pieces = 8192};
    const char *out = mb_cli_str(cli, "out");
    const char *spm = mb_cli_str(cli, "spm");
    if (!out || (mb_cli_n_args(cli) < 2) == (spm == NULL))
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "tokenizer wants --out GGUF, and texts or --spm MODEL");
    progress_init(&job.progress, stderr, mb_cli_has(cli, "quiet"));
    mb_status st = mb_cli_u64(cli, "pieces", 300, 1 << 22, &job.n_pieces, err);
    if (st == MB_OK)
        st = mb_cli_u64(
            cli, "max-chars", 1, UINT64_MAX / 2, &job.max_chars, err);
    if (st != MB_OK)
        return st;
    return spm ? convert(spm, out, err) : train_pieces(&job, cli, out, err);
}
