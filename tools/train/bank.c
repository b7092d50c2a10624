/* SPDX-License-Identifier: Apache-2.0
 * tools/train/bank.c - `membank-train bank`: memory blocks of a collection,
 * trained offline with all cores.
 *
 * What the daemon does in the background (daemon/bank_train.c), on a store that
 * no daemon has open. A signal saves and ends; the next run goes on.
 * Threads: the main thread; the trainer has its own. */
#include <stdio.h>
#include <string.h>

#include "mb_bank_train.h"
#include "mb_banker.h"
#include "progress.h"
#include "train.h"

#define CHECKPOINT_SECONDS 60.0

struct bank_run {
    struct progress progress;
    struct mb_gguf *gguf;
    struct mb_tokenizer *tokenizer;
    struct mb_decoder *decoder;
    struct mb_store *store;
    bool json;
};

static bool
is_stopped(void *arg)
{
    (void)arg;
    return train_is_stopped != 0;
}

static void
on_progress(void *arg, const struct mb_banker_progress *p)
{
    struct bank_run *r = arg;
    double steps = p->n_steps > 0 ? (double)p->step / (double)p->n_steps : 0;
    double part = p->n_subtrees > 0
                      ? ((double)p->done + steps) / (double)p->n_subtrees
                      : 0;
    char text[128];

    (void)snprintf(text, sizeof text,
        "subtree %zu of %zu  loss %.3f  %.1fk tokens/s", p->done + 1,
        p->n_subtrees, p->loss,
        p->seconds > 0 ? (double)p->n_tokens / p->seconds / 1e3 : 0);
    progress_show(&r->progress, part < 1 ? part : 1, text);
}

/* The bank that there is, or a new one. */
static mb_status
need_bank(struct bank_run *r, const struct mb_cli *cli, const char *collection,
    struct mb_error *err)
{
    struct mb_banker_settings settings = {0};
    struct mb_banker_model model = {0};
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_banks bank;
    uint64_t fan_out = 0;
    uint64_t levels = 0;
    uint64_t epochs = 0;
    uint32_t number;
    mb_status st = mb_cli_u64(cli, "fan-out", 0, 256, &fan_out, err);

    if (st == MB_OK)
        st = mb_cli_u64(cli, "levels", 0, MB_BANKS_MAX_LEVELS, &levels, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "epochs", 0, 1000, &epochs, err);
    if (st == MB_OK)
        st = mb_snapshot_begin(r->store, &snap, err);
    if (st == MB_OK)
        st = mb_collection_get(snap, mb_slice_cstr(collection), &coll, err);
    if (st == MB_OK && !mb_cli_has(cli, "rebuild")) {
        st = mb_banks_get(snap, &coll, &bank, err);
        if (st != MB_ERR_NOT_FOUND) {
            mb_snapshot_end(snap);
            return st;
        }
        st = MB_OK;
    }
    mb_snapshot_end(snap);
    if (st != MB_OK)
        return st;
    settings.fan_out = (uint32_t)fan_out;
    settings.levels = (uint32_t)levels;
    settings.epochs = (uint32_t)epochs;
    model.info = mb_decoder_info(r->decoder);
    model.name = model.info->name;
    mb_gguf_fingerprint(r->gguf, model.fingerprint);
    return mb_banker_build(
        r->store, collection, &settings, &model, NULL, NULL, &number, err);
}

/* What the blocks of a bank came to. */
struct summary {
    size_t n; /* blocks, the generic one aside */
    size_t n_gained;
    uint64_t bytes;
    uint64_t held_out; /* tokens */
    double before;     /* their loss without the blocks */
    double after;
};

/* generic: NULL if there is none. */
static void
print_losses(const struct bank_run *r, const struct mb_banker_train *t,
    const struct summary *s, const struct mb_banks_node *generic)
{
    bool has_generic = generic != NULL && generic->n_held_out > 0;

    if (r->json) {
        (void)printf(
            "{\"finished\":%s,\"nodes\":%zu,\"gained\":%zu,\"bytes\":%llu,"
            "\"tokens\":%llu,\"seconds\":%.1f,\"held_out\":%llu,"
            "\"before\":%.6f,\"after\":%.6f",
            t->is_finished ? "true" : "false", s->n, s->n_gained,
            (unsigned long long)s->bytes, (unsigned long long)t->at.n_tokens,
            t->at.seconds, (unsigned long long)s->held_out, s->before,
            s->after);
        if (has_generic)
            (void)printf(",\"generic\":%.6f", generic->after);
        (void)printf("}\n");
        return;
    }
    (void)printf("%zu of %zu subtrees as they should be, %zu of %zu blocks "
                 "help, %.1f MB\n%.2fM tokens in %.0f s; held-out text: %.4f "
                 "nats a token without, %.4f with (%llu tokens)\n",
        t->at.done, t->at.n_subtrees, s->n_gained, s->n, (double)s->bytes / 1e6,
        (double)t->at.n_tokens / 1e6, t->at.seconds, s->before, s->after,
        (unsigned long long)s->held_out);
    if (has_generic)
        (void)printf(
            "with a block of that size for all texts: %.4f\n", generic->after);
}

/* How many blocks there are, and what held-out text says. */
static mb_status
print_summary(struct bank_run *r, const char *collection,
    const struct mb_banker_train *t, struct mb_error *err)
{
    struct mb_arena *arena = mb_arena_new((size_t)1 << 30);
    struct mb_snapshot *snap = NULL;
    struct mb_collection coll;
    struct mb_banks bank;
    struct mb_banks_node *nodes = NULL;
    uint64_t held = 0;
    uint64_t bytes = 0;
    const struct mb_banks_node *generic = NULL;
    size_t n = 0;
    size_t n_gained = 0;
    double before = 0;
    double after = 0;
    mb_status st = arena != NULL ? mb_snapshot_begin(r->store, &snap, err)
                                 : mb_error_set(err, MB_ERR_NOMEM, "nodes");

    if (st == MB_OK)
        st = mb_collection_get(snap, mb_slice_cstr(collection), &coll, err);
    if (st == MB_OK)
        st = mb_banks_get(snap, &coll, &bank, err);
    if (st == MB_OK)
        st = mb_banks_nodes(snap, &coll, bank.bank, arena, &nodes, &n, err);
    if (st == MB_OK && n > 0 && nodes[n - 1].node == MB_BANKS_GENERIC)
        generic = &nodes[--n];
    for (size_t i = 0; i < n; i++) {
        n_gained += nodes[i].has_gained;
        bytes += nodes[i].block_bytes;
        if (nodes[i].level != 1)
            continue;
        held += nodes[i].n_held_out;
        before += nodes[i].before * (double)nodes[i].n_held_out;
        after += nodes[i].after * (double)nodes[i].n_held_out;
    }
    if (held > 0) {
        before /= (double)held;
        after /= (double)held;
    }
    mb_snapshot_end(snap);
    if (st == MB_OK)
        print_losses(r, t,
            &(struct summary){n, n_gained, bytes, held, before, after},
            generic);
    mb_arena_free(arena);
    return st;
}

static mb_status
open_all(struct bank_run *r, const struct mb_cli *cli, struct mb_error *err)
{
    const struct mb_store_options opt = {0};
    const char *store = mb_cli_str(cli, "store");
    const char *model = mb_cli_str(cli, "tokenizer");
    mb_status st;

    if (store == NULL || model == NULL || mb_cli_str(cli, "collection") == NULL)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "bank wants --store DIR, --collection NAME and --tokenizer MODEL");
    st = train_open_vocab(model, &r->gguf, &r->tokenizer, err);
    if (st == MB_OK)
        st = mb_decoder_open(r->gguf, &r->decoder, err);
    return st == MB_OK ? mb_store_open(store, &opt, &r->store, err) : st;
}

mb_status
train_bank(const struct mb_cli *cli, struct mb_error *err)
{
    struct bank_run r = {.json = mb_cli_has(cli, "json")};
    const char *collection = mb_cli_str(cli, "collection");
    struct mb_banker_train t = {
        .collection = collection,
        .is_stopped = is_stopped,
        .gives_way = is_stopped, // a signal need not wait for a whole step
        .progress = on_progress,
        .arg = &r,
    };
    uint64_t seconds = 0;
    uint64_t threads = 0;
    uint64_t checkpoint = 0;
    mb_status st = mb_cli_u64(cli, "seconds", 0, 100000000, &seconds, err);

    if (st == MB_OK)
        st = mb_cli_u64(cli, "tokens", 0, UINT64_MAX, &t.tokens, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "threads", 0, 1024, &threads, err);
    if (st == MB_OK)
        st = mb_cli_u64(cli, "checkpoint", 0, 1000000, &checkpoint, err);
    if (st == MB_OK)
        st = open_all(&r, cli, err);
    if (st == MB_OK)
        st = need_bank(&r, cli, collection, err);
    if (st == MB_OK) {
        t.store = r.store;
        t.gguf = r.gguf;
        t.tokenizer = r.tokenizer;
        t.seconds = (double)seconds;
        t.n_threads = (unsigned)threads;
        t.checkpoint_steps = (size_t)checkpoint;
        t.checkpoint_seconds = checkpoint > 0 ? 0 : CHECKPOINT_SECONDS;
        t.is_generic = mb_cli_has(cli, "generic");
        mb_gguf_fingerprint(r.gguf, t.fingerprint);
        progress_init(&r.progress, stderr, mb_cli_has(cli, "quiet"));
        st = mb_banker_train(&t, err);
        progress_clear(&r.progress);
    }
    if (st == MB_OK)
        st = print_summary(&r, collection, &t, err);
    mb_store_close(r.store);
    mb_decoder_close(r.decoder);
    mb_tokenizer_free(r.tokenizer);
    mb_gguf_close(r.gguf);
    return st;
}
