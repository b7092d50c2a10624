/* SPDX-License-Identifier: Apache-2.0
 * store/scrub.c - see scrub.h. */
#include "scrub.h"

#define META_SCRUB "scrub"

struct scrub {
    struct kv *kv;
    bool pending;
};

mb_status
scrub_new(struct kv *kv, struct kv_txn *txn, struct scrub **out)
{
    struct mb_slice val;
    struct scrub *s = mb_calloc(1, sizeof(*s));
    if (s == NULL)
        return MB_ERR_NOMEM;
    s->kv = kv;
    mb_status st = kv_get(txn, KV_META, mb_slice_cstr(META_SCRUB), &val);
    s->pending = st == MB_OK;
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        mb_free(s);
        return st;
    }
    *out = s;
    return MB_OK;
}

void
scrub_free(struct scrub *scrub)
{
    mb_free(scrub);
}

mb_status
scrub_mark(struct kv_txn *txn)
{
    static const uint8_t one[1] = {1};
    return kv_put(
        txn, KV_META, mb_slice_cstr(META_SCRUB), mb_slice_of(one, sizeof(one)));
}

void
scrub_committed(struct scrub *scrub, bool erased)
{
    scrub->pending = scrub->pending || erased;
}

bool
scrub_is_pending(const struct scrub *scrub)
{
    return scrub->pending;
}

bool
scrub_slice(struct scrub *scrub, bool busy)
{
    (void)busy;
    scrub->pending = false;
    return false;
}
