/* SPDX-License-Identifier: Apache-2.0
 * daemon/context_source.c - where a context finds and puts its blocks.
 *
 * A full segment is handed to the writer and kept in memory until it is on disk,
 * so that the model goes on reading while the disk works; when MAX_PENDING are
 * on their way it waits. Of a pass all fetches see one snapshot, and blocks in
 * memory are looked at first; they are let go only between passes, when no older
 * snapshot can miss them.
 * Scratch keeps segments in memory alone.
 * Threads: the owner's, but for on_applied: mb-write. */
#include <string.h>

#include "context_open.h"

#define MAX_PENDING       4
#define MAX_SCRATCH_BYTES ((size_t)64 << 20)

/* ---- segments in memory ---- */

static struct kept_segment *
keep_segment(struct open_context *oc, const struct mb_context_segment *seg)
{
    size_t size = seg->n_blocks * oc->block_bytes;
    struct kept_segment *k = mb_calloc(1, sizeof *k + size);
    uint8_t *at = (uint8_t *)(k + 1);

    if (k == NULL)
        return NULL;
    k->oc = oc;
    k->first = seg->first;
    k->n_blocks = seg->n_blocks;
    k->bytes = at;
    for (size_t i = 0; i < seg->n_blocks; i++, at += oc->block_bytes) {
        memcpy(at, seg->blocks[i].data, oc->block_bytes);
    }
    return k;
}

/* The block in a list of segments; false if it is in none. */
static bool
find_kept(const struct open_context *oc, const struct kept_segment *list,
    uint64_t ordinal, struct mb_slice *out)
{
    for (const struct kept_segment *k = list; k != NULL; k = k->next) {
        if (ordinal < k->first || ordinal >= k->first + k->n_blocks)
            continue;
        *out = mb_slice_of(
            k->bytes + (ordinal - k->first) * oc->block_bytes, oc->block_bytes);
        return true;
    }
    return false;
}

void
context_drop_scratch(struct open_context *oc)
{
    while (oc->scratch != NULL) {
        struct kept_segment *next = oc->scratch->next;

        mb_free(oc->scratch);
        oc->scratch = next;
    }
    oc->scratch_bytes = 0;
}

mb_status
context_take_runs(struct open_context *oc, const struct mb_stored_context *from)
{
    mb_buffer_clear(&oc->runs);
    mb_status st = mb_buffer_append(
        &oc->runs, from->runs, from->n_runs * sizeof *from->runs);
    oc->stored.runs = (const void *)oc->runs.data;
    oc->stored.n_runs = st == MB_OK ? from->n_runs : 0;
    return st;
}

/* Let go of the first pending one, which is done. */
static void
retire_first(struct open_context *oc)
{
    struct kept_segment *k = oc->pending;
    mb_status st = k->status;

    oc->pending = k->next;
    if (oc->pending == NULL)
        oc->pending_end = &oc->pending;
    oc->n_pending--;
    if (st == MB_OK)
        st = context_take_runs(oc, mb_op_context_result(k->op));
    if (st != MB_OK && !oc->is_broken) {
        oc->is_broken = true;
        oc->broken = k->err;
        oc->broken.status = st;
    }
    mb_op_free(k->op);
    mb_free(k);
}

/* Let go of what is done, waiting until at most max are not. */
static void
retire(struct open_context *oc, size_t max)
{
    while (oc->pending != NULL) {
        bool done;

        (void)pthread_mutex_lock(&oc->lock);
        while (!oc->pending->done && oc->n_pending > max) {
            (void)pthread_cond_wait(&oc->wake, &oc->lock);
        }
        done = oc->pending->done;
        (void)pthread_mutex_unlock(&oc->lock);
        if (!done)
            return;
        retire_first(oc);
    }
}

mb_status
context_wait(struct open_context *oc, struct mb_error *err)
{
    retire(oc, 0);
    if (!oc->is_broken)
        return MB_OK;
    return mb_error_set(err, oc->broken.status, "%s", oc->broken.text);
}

void
context_finish(struct open_context *oc)
{
    retire(oc, 0);
}

/* On mb-write. */
static void
on_applied(
    void *arg, struct mb_op *op, mb_status st, const struct mb_error *err)
{
    struct kept_segment *k = arg;
    struct open_context *oc = k->oc;

    (void)op;
    (void)pthread_mutex_lock(&oc->lock);
    k->status = st;
    k->err = *err;
    k->done = true;
    (void)pthread_cond_signal(&oc->wake);
    (void)pthread_mutex_unlock(&oc->lock);
}

/* ---- the source ---- */

static mb_status
fetch(void *arg, uint64_t ordinal, struct mb_slice *out, struct mb_error *err)
{
    struct open_context *oc = arg;
    mb_status st = MB_OK;

    if (find_kept(oc, oc->scratch, ordinal, out) ||
        find_kept(oc, oc->pending, ordinal, out))
        return MB_OK;
    if (oc->snap == NULL)
        st = mb_snapshot_begin(oc->cs->d->store, &oc->snap, err);
    if (st == MB_OK)
        st = mb_store_context_kv(
            oc->snap, &oc->stored, (uint32_t)ordinal, out, err);
    return st;
}

static void
release(void *arg)
{
    struct open_context *oc = arg;

    mb_snapshot_end(oc->snap);
    oc->snap = NULL;
}

static mb_status
commit_to_scratch(struct open_context *oc, const struct mb_context_segment *seg,
    struct mb_error *err)
{
    struct kept_segment *k;

    oc->scratch_bytes += seg->n_blocks * oc->block_bytes;
    if (oc->scratch_bytes > MAX_SCRATCH_BYTES)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "context \"%s\": with keep false a text of at most %zu MiB of "
            "blocks can be read: fork the context and keep it there",
            oc->name, MAX_SCRATCH_BYTES >> 20);
    k = keep_segment(oc, seg);
    if (k == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "a segment");
    k->next = oc->scratch;
    oc->scratch = k;
    return MB_OK;
}

/* The operation that appends seg, and what it leaves. */
static mb_status
make_op(struct open_context *oc, const struct mb_context_segment *seg,
    struct mb_op **out, struct mb_error *err)
{
    struct mb_stored_block blocks[MB_CONTEXT_MAX_SEGMENT];
    struct mb_stored_append a = {.ctx = &oc->stored,
        .blocks = blocks,
        .n = seg->n_blocks,
        .max_total = oc->max_total};

    if (seg->n_blocks > MB_CONTEXT_MAX_SEGMENT)
        return mb_error_set(
            err, MB_ERR_INTERNAL, "a segment of %zu blocks", seg->n_blocks);
    for (size_t i = 0; i < seg->n_blocks; i++) {
        blocks[i] =
            (struct mb_stored_block){.sum = seg->sums[i], .kv = seg->blocks[i]};
    }
    blocks[seg->n_blocks - 1].memory = seg->memory;
    return mb_op_context_append_new(&a, out, err);
}

/* Is there room in the quotas? The operation asks again; here the window stays
 * full, and what is in memory stays right. */
static mb_status
check_room(struct open_context *oc, const struct mb_stored_context *then,
    struct mb_error *err)
{
    struct mb_snapshot *snap;
    uint64_t more = then->bytes - oc->stored.bytes;
    uint64_t total = 0;
    uint64_t n;
    mb_status st;

    if (oc->max_total != 0) {
        st = mb_snapshot_begin(oc->cs->d->store, &snap, err);
        if (st != MB_OK)
            return st;
        st = mb_store_context_total(snap, &total, &n, err);
        mb_snapshot_end(snap);
        if (st != MB_OK)
            return st;
    }
    return mb_store_context_room(&oc->stored, total, more, oc->max_total, err);
}

static mb_status
commit(void *arg, const struct mb_context_segment *seg, struct mb_error *err)
{
    struct open_context *oc = arg;
    struct kept_segment *k = NULL;
    struct mb_stored_context then;
    struct mb_op *op = NULL;
    mb_status st;

    if (oc->is_scratch)
        return commit_to_scratch(oc, seg, err);
    retire(oc, MAX_PENDING - 1);
    if (oc->is_broken)
        return mb_error_set(err, oc->broken.status, "%s", oc->broken.text);
    if (seg->first != oc->stored.n_blocks)
        return mb_error_set(err, MB_ERR_INTERNAL,
            "context \"%s\": block %llu behind %u", oc->name,
            (unsigned long long)seg->first, (unsigned)oc->stored.n_blocks);
    st = make_op(oc, seg, &op, err);
    if (st != MB_OK)
        return st;
    mb_op_context_append_expect(op, &then);
    st = check_room(oc, &then, err);
    if (st == MB_OK) {
        k = keep_segment(oc, seg);
        if (k == NULL)
            st = mb_error_set(err, MB_ERR_NOMEM, "a segment");
    }
    if (st == MB_OK) {
        k->op = op;
        st = mb_store_submit(oc->cs->d->store, op, on_applied, k, err);
    }
    if (st != MB_OK) {
        mb_free(k);
        mb_op_free(op);
        return st;
    }
    then.runs = oc->stored.runs;
    then.n_runs = oc->stored.n_runs;
    then.settings = oc->stored.settings;
    oc->stored = then;
    *oc->pending_end = k;
    oc->pending_end = &k->next;
    oc->n_pending++;
    return MB_OK;
}

struct mb_context_source
context_source(struct open_context *oc)
{
    return (struct mb_context_source){
        .arg = oc, .fetch = fetch, .release = release, .commit = commit};
}
