/* SPDX-License-Identifier: Apache-2.0
 * tools/train/hmt_data.c - texts for memories of segments, see hmt.h.
 * Threads: the main thread. */
#include "hmt.h"

#include <math.h>
#include <string.h>

#define MAX_BYTES ((size_t)1 << 30)
#define TRIES     64 /* to find a place within one document */

mb_status
hmt_data_open(struct hmt_data *d, const struct mb_tokenizer *tok,
    const char *const *paths, size_t n_paths, const char *heldout,
    struct mb_error *err)
{
    mb_status st = MB_OK;
    if (n_paths > HMT_MAX_SHARDS)
        return mb_error_set(err, MB_ERR_TOO_LARGE,
            "hmt: %zu shards, at most %d are possible", n_paths,
            HMT_MAX_SHARDS);
    for (size_t i = 0; i < n_paths && st == MB_OK; i++) {
        st = shard_open(paths[i], &d->sources[d->n_sources], err);
        if (st == MB_OK && !shard_is_of(d->sources[d->n_sources++], tok))
            st = mb_error_set(err, MB_ERR_MISMATCH,
                "%s: tokens of another tokenizer", paths[i]);
    }
    if (st == MB_OK && heldout)
        st = shard_open(heldout, &d->heldout, err);
    if (st == MB_OK && heldout && !shard_is_of(d->heldout, tok))
        st = mb_error_set(
            err, MB_ERR_MISMATCH, "%s: tokens of another tokenizer", heldout);
    d->arena = mb_arena_new(MAX_BYTES);
    if (st == MB_OK && !d->arena)
        st = mb_error_set(err, MB_ERR_NOMEM, "hmt: samples");
    return st;
}

void
hmt_data_close(struct hmt_data *d)
{
    for (size_t i = 0; i < d->n_sources; i++)
        shard_close(d->sources[i]);
    shard_close(d->heldout);
    mb_arena_free(d->arena);
}

/* n samples with room for `depth` segments each. */
static struct hmt_sample *
make_samples(struct hmt_data *d, size_t n, size_t depth)
{
    struct hmt_sample *s = mb_arena_alloc(d->arena, (n + 1) * sizeof *s);
    size_t bytes = (depth * d->shape->n_segment + 1) * sizeof *s[0].tokens;
    for (size_t i = 0; s && i < n; i++) {
        s[i] = (struct hmt_sample){mb_arena_alloc(d->arena, bytes), depth};
        if (!s[i].tokens)
            return NULL;
    }
    return s;
}

/* Tokens of a sample of so many segments. */
static size_t
tokens_of(const struct hmt_data *d, size_t depth)
{
    return depth * d->shape->n_segment + 1;
}

static void
read_sample(const struct hmt_data *d, const struct shard *shard, uint64_t from,
    const struct hmt_sample *s)
{
    shard_read(shard, from, tokens_of(d, s->depth),
        (mb_token_id *)(uintptr_t)s->tokens);
}

mb_status
hmt_data_room(struct hmt_data *d, size_t n, size_t depth, size_t n_judged,
    size_t judged_depth, struct mb_error *err)
{
    for (size_t i = 0; i < d->n_sources; i++) {
        if (shard_n_tokens(d->sources[i]) < tokens_of(d, depth))
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "hmt: shard %zu has %llu tokens, a sample %zu", i + 1,
                (unsigned long long)shard_n_tokens(d->sources[i]),
                tokens_of(d, depth));
    }
    uint64_t n_heldout = d->heldout ? shard_n_tokens(d->heldout) : 0;
    size_t length = tokens_of(d, judged_depth);
    if (!d->heldout)
        n_judged = 0;
    else if (n_heldout < length)
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "hmt: the held-out shard has %llu tokens, a window %zu",
            (unsigned long long)n_heldout, length);
    if (n_judged > n_heldout / length)
        n_judged = (size_t)(n_heldout / length);
    d->n_batch = n;
    d->batch = make_samples(d, n, depth);
    d->n_judged = n_judged;
    d->judged = make_samples(d, n_judged, judged_depth);
    if (!d->batch || !d->judged)
        return mb_error_set(err, MB_ERR_NOMEM, "hmt: samples");
    for (size_t i = 0; i < n_judged; i++)
        read_sample(
            d, d->heldout, i * (n_heldout - length) / n_judged, &d->judged[i]);
    return MB_OK;
}

/* Does one document have tokens [from, from + n)? */
static bool
is_in_document(const struct shard *s, uint64_t from, uint64_t n)
{
    uint64_t low = 0;
    uint64_t high = shard_n_documents(s);
    while (low < high) { // the first that begins behind `from`
        uint64_t mid = low + (high - low) / 2;
        if (shard_document(s, mid) <= from)
            low = mid + 1;
        else
            high = mid;
    }
    return from + n <= shard_document(s, low);
}

void
hmt_data_batch(struct hmt_data *d, uint64_t step, size_t depth)
{
    size_t n = tokens_of(d, depth);
    struct mb_rng rng;
    uint64_t all = 0;
    mb_rng_init(&rng, d->seed * UINT64_C(1000003) + step);
    for (size_t i = 0; i < d->n_sources; i++)
        all += shard_n_tokens(d->sources[i]) - n + 1;
    for (size_t i = 0; i < d->n_batch; i++) {
        const struct shard *shard = NULL;
        uint64_t at = 0;
        for (size_t k = 0; k < TRIES; k++) {
            size_t source = 0;
            at = mb_rng_below(&rng, all);
            for (; at > shard_n_tokens(d->sources[source]) - n; source++)
                at -= shard_n_tokens(d->sources[source]) - n + 1;
            shard = d->sources[source];
            if (is_in_document(shard, at, n))
                break;
        }
        d->batch[i].depth = depth;
        read_sample(d, shard, at, &d->batch[i]);
    }
}

mb_status
hmt_data_judge(const struct hmt_data *d, struct hmt_trainer *t, hmt_mode mode,
    struct hmt_verdict *out, struct mb_error *err)
{
    double *losses = mb_calloc(d->n_judged * HMT_MAX_DEPTH + 1, sizeof *losses);
    double sum[2] = {0, 0};
    size_t n[2] = {0, 0};
    if (!losses)
        return mb_error_set(err, MB_ERR_NOMEM, "hmt: losses");
    mb_status st =
        hmt_trainer_judge(t, d->judged, d->n_judged, mode, losses, err);
    for (size_t i = 0; i < d->n_judged && st == MB_OK; i++) {
        for (size_t j = 0; j < d->judged[i].depth; j++) {
            sum[j > 0] += losses[i * HMT_MAX_DEPTH + j];
            n[j > 0] += hmt_n_targets(d->shape, &d->judged[i], j);
        }
    }
    mb_free(losses);
    *out = (struct hmt_verdict){n[0] > 0 ? sum[0] / (double)n[0] : (double)NAN,
        n[1] > 0 ? sum[1] / (double)n[1] : (double)NAN};
    return st;
}
