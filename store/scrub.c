/* SPDX-License-Identifier: Apache-2.0
 * store/scrub.c - see scrub.h.
 *
 * Two rules keep erased bytes out of the file.
 * 1. Gaps become clean: the unused part of every page that a commit wrote is
 *    set to zero (LMDB builds pages in reused memory and moves nodes about in
 *    them, so remains of any row may stand there). Only new pages are looked at
 *    (pages_diff). It is put off, since most pages of a commit are replaced by
 *    the next when documents come one by one, and a page that is gone needs no
 *    cleaning: for a moment, or after a commit that erased, until the writer
 *    has nothing better to do.
 * 2. After a commit N that erased, all pages that were free by then are set to
 *    zero as soon as nobody can need them: a later commit has been made (else
 *    the older meta page still leads there after a crash), and every reader
 *    began after N. It happens inside a write transaction, so that LMDB does
 *    not hand the pages out meanwhile.
 * What was erased lived in pages that N replaced or that were free before, so
 * both rules together leave no row.
 * 3. A branch page steers by a key that was once the first of a leaf, and keeps
 * it when that row goes. Keys hold ids, terms and values of users, so each key
 * in a branch page that such a commit wrote is looked up, and where it has no
 * row, the rows of its leaf are taken out and put again: LMDB merges and splits
 * pages then, and steers by keys of rows that are there.
 *
 * What is known of gaps and zeroed pages lives in memory. If the store was not
 * shut in order, all gaps count as unknown, and the next scrub walks the whole
 * tree once. Of free pages nothing is known at start: pages are read before
 * they are written, so that costs reading only.
 * All but the walk of the whole tree is done in slices of a few milliseconds,
 * so that whoever comes meanwhile does not wait longer than that.
 * Invariants: the mark in meta goes in the transaction that saw all done; every
 * commit of this process is told to scrub_committed.
 * Threads: writer. */
#include "scrub.h"

#include <string.h>

#include "pages.h"

#define META_SCRUB "scrub"
/* Time of one slice, and the pages that it treats at least. */
#define SLICE_BUSY_NS   3000000u
#define SLICE_IDLE_NS   10000000u
#define SLICE_MIN_PAGES 64
/* A commit of more pages than this may have written and freed pages that its
 * tree does not show: forget what we know. */
#define BIG_COMMIT_PAGES 32768
/* Gaps that may wait, and the slots of their table (a power of two). */
#define MAX_GAPS  16384
#define GAP_SLOTS 65536u
/* Pause after which gaps are cleaned, and before a reader is asked after
 * again. */
#define GAP_WAIT_MS    50
#define READER_WAIT_MS 200

/* Keys without a row that may wait, and how many are treated at once. */
#define MAX_STALE       8192
#define SLICE_STALE     64
#define SLICE_BUSY_KEYS 8
/* A branch page above branch pages leads to that many times a page of rows. */
#define PAGES_BELOW_BRANCH 128

#define SLOT_FREE UINT64_MAX
#define SLOT_DEAD (UINT64_MAX - 1)

/* A gap that waits: [start, end) in bytes from the start of `page`. */
struct gap {
    uint64_t page; /* or SLOT_FREE, SLOT_DEAD */
    uint64_t start;
    uint64_t end;
};

/* A key that a branch page has and no row. */
struct stale {
    enum kv_table table;
    uint32_t height; /* of the branch page; 2 is above the leaves */
    struct kv_key key;
};

struct scrub {
    struct kv *kv;
    struct pages *pages; /* NULL: the file is not understood */
    bool pending;
    uint64_t erase_txn; /* the newest commit that erased */
    /* Pages freed by commits before this one are needed by nobody. That is more
     * than erase_txn says: a commit between two slices may list what it leaves
     * of older records under the number of a newer one. */
    uint64_t free_before;
    bool gaps_unknown; /* the store was not shut in order */
    struct gap *gaps;  /* (GAP_SLOTS) open addressing by page */
    size_t n_gaps;
    size_t n_slots_used; /* dead ones too */
    size_t next_slot;    /* where cleaning goes on */
    uint8_t *zeroed;     /* bit by page: free and zero */
    uint64_t n_zeroed;   /* bits there is room for */
    struct stale *stale;
    size_t n_stale;
    size_t max_stale;      /* there is room for */
    struct kv_txn *look;   /* to look keys up while pages are walked */
    uint64_t n_new;        /* pages of the commit at hand */
    uint64_t slice_end_ns; /* of the slice at hand */
    size_t slice_n;        /* pages that it has treated */
};

/* ---- which free pages are known to be zero ---- */

static bool
zeroed_has(const struct scrub *s, uint64_t page)
{
    return page < s->n_zeroed && (s->zeroed[page / 8] >> (page % 8) & 1) != 0;
}

static void
zeroed_clear(struct scrub *s, uint64_t page)
{
    if (page < s->n_zeroed)
        s->zeroed[page / 8] &= (uint8_t) ~(1u << (page % 8));
}

static void
forget_zeroed(struct scrub *s)
{
    if (s->n_zeroed > 0)
        memset(s->zeroed, 0, (size_t)(s->n_zeroed / 8));
}

/* Without memory the page will be looked at again, no more. */
static void
zeroed_set(struct scrub *s, uint64_t page)
{
    if (page >= s->n_zeroed) {
        uint64_t bytes = (page / 8 + 1) * 2;
        uint8_t *bits = mb_realloc(s->zeroed, (size_t)bytes);
        if (bits == NULL)
            return;
        memset(bits + s->n_zeroed / 8, 0, (size_t)(bytes - s->n_zeroed / 8));
        s->zeroed = bits;
        s->n_zeroed = bytes * 8;
    }
    s->zeroed[page / 8] |= (uint8_t)(1u << (page % 8));
}

/* ---- slices ---- */

static void
slice_begin(struct scrub *s, bool busy)
{
    s->slice_end_ns = mb_clock_ns() + (busy ? SLICE_BUSY_NS : SLICE_IDLE_NS);
    s->slice_n = 0;
}

/* Asked before each page is treated. */
static bool
slice_is_over(struct scrub *s)
{
    return ++s->slice_n > SLICE_MIN_PAGES && mb_clock_ns() >= s->slice_end_ns;
}

/* ---- gaps ---- */

static void
gaps_clear(struct scrub *s)
{
    for (size_t i = 0; i < GAP_SLOTS; i++) {
        s->gaps[i].page = SLOT_FREE;
    }
    s->n_gaps = 0;
    s->n_slots_used = 0;
    s->next_slot = 0;
}

/* Slot of a page, or the free one where its search ends. */
static struct gap *
gaps_find(const struct scrub *s, uint64_t page)
{
    uint64_t h = page * UINT64_C(0x9E3779B97F4A7C15);
    size_t i = (size_t)(h >> 40) & (GAP_SLOTS - 1);
    while (s->gaps[i].page != SLOT_FREE && s->gaps[i].page != page) {
        i = (i + 1) & (GAP_SLOTS - 1);
    }
    return &s->gaps[i];
}

/* Clean gaps that wait, all or as many as the slice has time for. */
static mb_status
gaps_flush(struct scrub *s, bool all)
{
    for (; s->n_gaps > 0; s->next_slot = (s->next_slot + 1) % GAP_SLOTS) {
        struct gap *g = &s->gaps[s->next_slot];
        if (g->page >= SLOT_DEAD)
            continue;
        if (!all && slice_is_over(s))
            return MB_OK;
        mb_status st = pages_zero(s->pages, g->page, g->start, g->end);
        if (st != MB_OK)
            return st;
        g->page = SLOT_DEAD;
        s->n_gaps--;
    }
    if (s->n_slots_used > 0)
        gaps_clear(s);
    return MB_OK;
}

static mb_status
page_written(
    void *arg, uint64_t page, uint64_t n, uint64_t gap_start, uint64_t gap_end)
{
    struct scrub *s = arg;
    s->n_new += n;
    for (uint64_t i = 0; i < n; i++) {
        zeroed_clear(s, page + i);
    }
    if (gap_start == gap_end)
        return MB_OK;
    if (s->n_slots_used >= GAP_SLOTS / 2 || s->n_gaps >= MAX_GAPS) {
        mb_status st = gaps_flush(s, true);
        if (st != MB_OK)
            return st;
    }
    struct gap *g = gaps_find(s, page);
    if (g->page == SLOT_FREE) {
        s->n_slots_used++;
        s->n_gaps++;
    }
    *g = (struct gap){page, gap_start, gap_end};
    return MB_OK;
}

static mb_status
page_gone(void *arg, uint64_t page)
{
    struct scrub *s = arg;
    struct gap *g = gaps_find(s, page);
    if (g->page == page) {
        g->page = SLOT_DEAD;
        s->n_gaps--;
    }
    return MB_OK;
}

/* ---- keys without a row ---- */

static void see_commit(struct scrub *s, bool erased, bool keys);

/* Tables whose keys hold users' bytes. */
static bool
has_user_keys(struct mb_slice name, enum kv_table *table)
{
    static const enum kv_table tables[] = {
        KV_META, KV_DOCUMENT_IDS, KV_TERMS, KV_FIELDS};

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (mb_slice_equal(name, mb_slice_cstr(kv_table_name(tables[i])))) {
            *table = tables[i];
            return true;
        }
    }
    return false;
}

static mb_status
stale_add(
    struct scrub *s, enum kv_table table, uint32_t height, struct mb_slice key)
{
    if (s->n_stale == MAX_STALE) {
        s->gaps_unknown = true; // so the tree is walked, and the rest found
        return MB_OK;
    }
    if (s->n_stale == s->max_stale) {
        size_t max = s->max_stale == 0 ? 16 : 2 * s->max_stale;
        struct stale *list = mb_realloc(s->stale, max * sizeof(*list));
        if (list == NULL)
            return MB_ERR_NOMEM;
        s->stale = list;
        s->max_stale = max;
    }
    struct stale *e = &s->stale[s->n_stale++];
    e->table = table;
    e->height = height;
    kv_key_init(&e->key);
    kv_key_bytes(&e->key, key);
    return MB_OK;
}

static mb_status
check_separator(
    void *arg, struct mb_slice name, uint32_t height, struct mb_slice key)
{
    struct scrub *s = arg;
    struct mb_slice val;
    enum kv_table table;
    if (key.size > KV_MAX_KEY || !has_user_keys(name, &table))
        return MB_OK;
    mb_status st = kv_get(s->look, table, key, &val);
    return st == MB_ERR_NOT_FOUND ? stale_add(s, table, height, key) : st;
}

/* Have LMDB steer by other keys: some of the list, in its own commit. */
static mb_status
replace_stale(struct scrub *s, bool busy)
{
    size_t page = pages_size(s->pages);
    size_t left = busy ? SLICE_BUSY_KEYS : SLICE_STALE;
    struct kv_txn *txn;
    mb_status st = kv_begin(s->kv, true, &txn, NULL);
    if (st != MB_OK)
        return st;
    size_t n = s->n_stale;
    for (; st == MB_OK && n > 0 && left > 0; left--) {
        const struct stale *e = &s->stale[--n];
        struct mb_slice key = kv_key_slice(&e->key);
        struct mb_slice val;
        st = kv_get(txn, e->table, key, &val);
        if (st == MB_ERR_NOT_FOUND) {
            st = kv_rewrite(txn, e->table, key,
                e->height == 2 ? page : page * PAGES_BELOW_BRANCH);
        }
    }
    if (st == MB_OK)
        st = scrub_mark(txn);
    if (st != MB_OK) {
        kv_abort(txn);
        return st;
    }
    st = kv_commit(txn, NULL);
    if (st == MB_OK) {
        s->n_stale = n;
        see_commit(s, true, false);
    }
    return st;
}

/* ---- commits ---- */

/* Gaps of the newest commit, and stale keys if asked. */
static mb_status
take_gaps(struct scrub *s, const struct pages_meta metas[2], bool keys)
{
    const struct pages_visitor visitor = {.written = page_written,
        .gone = page_gone,
        .arg = s,
        .separator = keys ? check_separator : NULL};
    if (metas[0].txn + 1 != metas[1].txn)
        return MB_OK; // the first commit of all
    s->n_new = 0;
    mb_status st = pages_diff(s->pages, &metas[0], &metas[1], &visitor);
    if (s->n_new > BIG_COMMIT_PAGES)
        forget_zeroed(s);
    return st;
}

static mb_status
clean_now(
    void *arg, uint64_t page, uint64_t n, uint64_t gap_start, uint64_t gap_end)
{
    struct scrub *s = arg;
    (void)n;
    return pages_zero(s->pages, page, gap_start, gap_end);
}

/* Clean the gaps of all pages in use. */
static mb_status
clean_all_gaps(struct scrub *s, const struct pages_meta *meta)
{
    const struct pages_visitor visitor = {
        .written = clean_now, .arg = s, .separator = check_separator};
    uint64_t start = mb_clock_ns();
    mb_status st = pages_walk(s->pages, meta, &visitor);
    if (st == MB_OK) {
        s->gaps_unknown = false;
        mb_log(MB_LOG_INFO, "store.gaps_cleaned", "ms=%llu",
            (unsigned long long)((mb_clock_ns() - start) / 1000000));
    }
    return st;
}

static void
give_up(struct scrub *s, mb_status st)
{
    mb_log(MB_LOG_WARN, "store.scrub_failed", "status=%s", mb_status_name(st));
    // Opening the store again tries again; until then the mark stays.
    pages_close(s->pages);
    s->pages = NULL;
}

/* A commit could not be looked at for want of memory. What is known may be
 * wrong now (a gap that waits may hold rows), so nothing is; the next scrub
 * walks the whole tree. */
static void
forget(struct scrub *s)
{
    gaps_clear(s);
    forget_zeroed(s);
    s->n_stale = 0;
    s->gaps_unknown = true;
}

/* After a commit. keys: those of branch pages may have lost their rows. */
static void
see_commit(struct scrub *s, bool erased, bool keys)
{
    struct pages_meta metas[2];
    s->pending = s->pending || erased;
    if (s->pages == NULL)
        return;
    mb_status st = pages_metas(s->pages, metas);
    if (st == MB_OK && erased)
        s->erase_txn = metas[1].txn;
    if (st == MB_OK && keys)
        st = kv_begin(s->kv, false, &s->look, NULL);
    if (st == MB_OK)
        st = take_gaps(s, metas, keys);
    kv_abort(s->look);
    s->look = NULL;
    if (st == MB_ERR_NOMEM || st == MB_ERR_BUSY) // memory, or reader slots
        forget(s);
    else if (st != MB_OK)
        give_up(s, st);
}

void
scrub_committed(struct scrub *s, bool erased)
{
    see_commit(s, erased, erased);
}

/* ---- free pages ---- */

static mb_status
clean_free(void *arg, uint64_t txn, uint64_t page)
{
    struct scrub *s = arg;
    if (txn >= s->free_before || zeroed_has(s, page))
        return MB_OK;
    if (slice_is_over(s))
        return MB_ERR_CANCELLED;
    mb_status st = pages_zero(s->pages, page, 0, pages_size(s->pages));
    if (st == MB_OK)
        zeroed_set(s, page);
    return st;
}

/* A commit that changes nothing but the number of the newest one. */
static mb_status
empty_commit(struct scrub *s)
{
    struct kv_txn *txn;
    mb_status st = kv_begin(s->kv, true, &txn, NULL);
    if (st != MB_OK)
        return st;
    st = scrub_mark(txn);
    if (st != MB_OK) {
        kv_abort(txn);
        return st;
    }
    st = kv_commit(txn, NULL);
    if (st == MB_OK)
        scrub_committed(s, false);
    return st;
}

/* Rule 2, inside a write transaction; *done when all pages were seen. */
static mb_status
clean_slice(struct scrub *s, bool *done)
{
    struct pages_meta metas[2];
    struct kv_txn *txn;
    mb_status st = kv_begin(s->kv, true, &txn, NULL);
    if (st != MB_OK)
        return st;
    st = pages_metas(s->pages, metas);
    if (st == MB_OK && s->gaps_unknown) {
        s->look = txn;
        st = clean_all_gaps(s, &metas[1]);
        s->look = NULL;
        if (st == MB_OK && s->n_stale > 0) {
            kv_abort(txn); // they come first
            *done = false;
            return MB_OK;
        }
    }
    // Also of the pages that this commit replaces: they are free after it.
    if (st == MB_OK)
        st = gaps_flush(s, true);
    if (st == MB_OK) {
        uint64_t oldest = kv_oldest_reader(s->kv);
        s->free_before = oldest < metas[1].txn ? oldest : metas[1].txn;
        st = pages_free_list(s->pages, &metas[1], clean_free, s);
    }
    *done = st == MB_OK;
    if (st == MB_OK)
        st = kv_del(txn, KV_META, mb_slice_cstr(META_SCRUB));
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK;
    if (!*done || st != MB_OK) {
        kv_abort(txn);
        return st == MB_ERR_CANCELLED ? MB_OK : st;
    }
    st = kv_commit(txn, NULL);
    if (st == MB_OK)
        scrub_committed(s, false);
    if (st == MB_OK && s->pages != NULL)
        st = gaps_flush(s, true);
    return st;
}

/* A slice of what an erasing commit left to do. */
static mb_status
pending_slice(struct scrub *s, bool busy, bool *more)
{
    struct pages_meta metas[2];
    bool done = false;
    mb_status st;
    *more = true;
    if (s->n_stale > 0)
        return replace_stale(s, busy);
    st = gaps_flush(s, false);
    if (st != MB_OK || s->n_gaps > 0)
        return st;
    st = pages_metas(s->pages, metas);
    if (st == MB_OK && metas[1].txn <= s->erase_txn) {
        if (busy)
            return MB_OK; // those who wait will commit soon
        st = empty_commit(s);
    }
    if (st != MB_OK || s->pages == NULL)
        return st;
    if (kv_oldest_reader(s->kv) <= s->erase_txn) {
        *more = false;
        return MB_OK;
    }
    st = clean_slice(s, &done);
    if (st == MB_OK && done) {
        *more = false;
        s->pending = false;
        mb_log(MB_LOG_DEBUG, "store.scrubbed", "txn=%llu",
            (unsigned long long)s->erase_txn);
    }
    return st;
}

bool
scrub_slice(struct scrub *s, bool busy, bool idle)
{
    bool more = false;
    mb_status st = MB_OK;
    if (s->pages == NULL)
        return false;
    slice_begin(s, busy);
    if (s->pending) {
        st = pending_slice(s, busy, &more);
    } else if (idle) {
        st = gaps_flush(s, false);
        more = s->n_gaps > 0;
    }
    if (st == MB_OK)
        return more && s->pages != NULL;
    // A full disk and short memory pass; then it goes on.
    if (st != MB_ERR_NO_SPACE && st != MB_ERR_NOMEM)
        give_up(s, st);
    return false;
}

/* ---- the rest ---- */

static mb_status
open_pages(struct scrub *s)
{
    struct pages_meta metas[2];
    s->gaps = mb_alloc(GAP_SLOTS * sizeof(*s->gaps));
    if (s->gaps == NULL)
        return MB_ERR_NOMEM;
    gaps_clear(s);
    mb_status st = pages_open(kv_path(s->kv), &s->pages);
    if (st == MB_OK)
        st = pages_metas(s->pages, metas);
    if (st == MB_OK) {
        s->erase_txn = metas[1].txn;
        s->gaps_unknown = !kv_was_shut(s->kv);
    }
    if (st == MB_ERR_NOT_IMPLEMENTED || st == MB_ERR_CORRUPT) {
        give_up(s, st); // not a reason to keep the store shut
        st = MB_OK;
    }
    return st;
}

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
    if (st == MB_OK || st == MB_ERR_NOT_FOUND)
        st = open_pages(s);
    if (st != MB_OK) {
        s->gaps_unknown = true; // nothing is known: not to be called clean
        scrub_free(s);
        return st;
    }
    *out = s;
    return MB_OK;
}

void
scrub_free(struct scrub *s)
{
    if (s == NULL)
        return;
    if (s->pages != NULL && !s->gaps_unknown && s->n_stale == 0 &&
        gaps_flush(s, true) == MB_OK)
        kv_mark_shut(s->kv);
    pages_close(s->pages);
    mb_free(s->stale);
    mb_free(s->gaps);
    mb_free(s->zeroed);
    mb_free(s);
}

mb_status
scrub_mark(struct kv_txn *txn)
{
    static const uint8_t one[1] = {1};
    return kv_put(
        txn, KV_META, mb_slice_cstr(META_SCRUB), mb_slice_of(one, sizeof(one)));
}

bool
scrub_is_pending(const struct scrub *s)
{
    return s->pending;
}

unsigned
scrub_wait_ms(const struct scrub *s)
{
    if (s->pages == NULL)
        return 0;
    return s->n_gaps > 0 ? GAP_WAIT_MS : s->pending ? READER_WAIT_MS : 0;
}
