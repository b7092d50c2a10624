/* SPDX-License-Identifier: Apache-2.0
 * store/collection.c - see collection.h.
 *
 * A collection record holds settings and counters. Within a write transaction
 * it is read once, changed in memory by whoever touches the collection, and
 * written once by collection_flush.
 * Invariants: numbers of collections, documents, segments and terms are never
 * used twice; a name row and its record come and go together.
 * Threads: reading from any; the rest on the writer. */
#include "collection.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "record.h"

#define DEFAULT_LSA_DIM      256
#define DEFAULT_K1           1.5f
#define DEFAULT_B            0.75f
#define DEFAULT_TITLE_WEIGHT 2
#define MAX_TITLE_WEIGHT     100
#define COLLECTION_FIXED     176 /* bytes before the name */

/* ---- settings ---- */

void
mb_collection_settings_default(struct mb_collection_settings *s)
{
    memset(s, 0, sizeof(*s));
    (void)snprintf(s->language, sizeof(s->language), "english");
    s->embedding = MB_EMBED_LSA;
    s->dim = DEFAULT_LSA_DIM;
    s->k1 = DEFAULT_K1;
    s->b = DEFAULT_B;
    s->title_weight = DEFAULT_TITLE_WEIGHT;
}

/* Fill in what was left to us. */
static struct mb_collection_settings
complete_settings(const struct mb_collection_settings *s)
{
    struct mb_collection_settings out = *s;
    if (out.language[0] == '\0')
        (void)snprintf(out.language, sizeof(out.language), "english");
    if (out.dim == 0 && out.embedding == MB_EMBED_LSA)
        out.dim = DEFAULT_LSA_DIM;
    if (out.embedding == MB_EMBED_NONE)
        out.dim = 0;
    if (out.k1 == 0)
        out.k1 = DEFAULT_K1;
    if (out.b < 0)
        out.b = DEFAULT_B;
    return out;
}

static bool
language_is_known(const char *language)
{
    if (strcmp(language, "none") == 0)
        return true;
    for (const char *const *l = mb_analyzer_languages(); *l != NULL; l++) {
        if (strcmp(*l, language) == 0)
            return true;
    }
    return false;
}

mb_status
mb_collection_settings_check(
    const struct mb_collection_settings *s, struct mb_error *err)
{
    struct mb_collection_settings c = *s;
    if (memchr(c.language, '\0', sizeof(c.language)) == NULL) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "language: longer than %zu bytes", sizeof(c.language) - 1);
    }
    c = complete_settings(s);
    if (!language_is_known(c.language)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "language: \"%s\" is not known (a Snowball name or \"none\")",
            c.language);
    }
    if ((unsigned)c.embedding > MB_EMBED_ANCHOR) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "embedding: kind must be none, lsa, client or anchor");
    }
    if (c.embedding == MB_EMBED_ANCHOR && c.dim != 0) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "embedding: dim of kind anchor is the model's, do not say it");
    }
    if ((c.embedding == MB_EMBED_LSA || c.embedding == MB_EMBED_CLIENT) &&
        (c.dim < 1 || c.dim > MB_MAX_DIM)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "embedding: dim is %u, must be 1 to %d", (unsigned)c.dim,
            MB_MAX_DIM);
    }
    if (!(c.k1 > 0 && c.k1 <= 100)) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "k1: is %g, must be above 0, at most 100", (double)c.k1);
    }
    if (!(c.b >= 0 && c.b <= 1)) {
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "b: is %g, must be 0 to 1", (double)c.b);
    }
    if (c.title_weight > MAX_TITLE_WEIGHT) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "title_weight: is %u, must be at most %d", (unsigned)c.title_weight,
            MAX_TITLE_WEIGHT);
    }
    return MB_OK;
}

static bool
settings_agree(const struct mb_collection_settings *a,
    const struct mb_collection_settings *b)
{
    return strcmp(a->language, b->language) == 0 &&
           a->embedding == b->embedding && a->dim == b->dim && a->k1 == b->k1 &&
           a->b == b->b && a->title_weight == b->title_weight;
}

/* ---- bytes ---- */

size_t
collection_encode(
    const struct mb_collection *c, uint8_t out[MAX_COLLECTION_RECORD])
{
    size_t name_size = strlen(c->name);
    size_t size = COLLECTION_FIXED + name_size + RECORD_CHECKSUM;
    memset(out, 0, size);
    mb_put_le64(out, c->created_ms);
    mb_put_le64(out + 8, c->n_documents);
    mb_put_le64(out + 16, c->n_segments);
    mb_put_le64(out + 24, c->n_tokens);
    mb_put_le64(out + 32, c->text_bytes);
    mb_put_le64(out + 40, c->sum_lengths);
    mb_put_le64(out + 48, c->n_terms);
    mb_put_le64(out + 56, c->fitted_segments);
    mb_put_le64(out + 64, c->n_vectors);
    mb_put_le32(out + 72, c->next_docno);
    mb_put_le32(out + 76, c->next_segno);
    mb_put_le32(out + 80, c->next_term);
    mb_put_le32(out + 84, c->generation);
    mb_put_le32(out + 88, c->building);
    mb_put_le32(out + 92, c->next_generation);
    mb_put_le32(out + 96, c->dim);
    mb_put_le32(out + 100, c->settings.embedding);
    mb_put_le32(out + 104, c->settings.dim);
    mb_put_lef32(out + 108, c->settings.k1);
    mb_put_lef32(out + 112, c->settings.b);
    mb_put_le32(out + 116, c->settings.title_weight);
    memcpy(out + 120, c->settings.language, sizeof(c->settings.language));
    mb_put_le32(out + 152, c->id);
    mb_put_le32(out + 156, (uint32_t)name_size);
    memcpy(out + COLLECTION_FIXED, c->name, name_size);
    record_seal(out, size);
    return size;
}

mb_status
collection_decode(struct mb_slice record, struct mb_collection *out)
{
    const uint8_t *p = record.data;
    if (record.size < COLLECTION_FIXED + RECORD_CHECKSUM ||
        !record_is_sound(record))
        return MB_ERR_CORRUPT;
    size_t name_size = mb_get_le32(p + 156);
    if (name_size > MB_MAX_COLLECTION_NAME ||
        record.size != COLLECTION_FIXED + name_size + RECORD_CHECKSUM ||
        mb_get_le32(p + 100) > MB_EMBED_ANCHOR || p[151] != 0)
        return MB_ERR_CORRUPT;
    memset(out, 0, sizeof(*out));
    out->created_ms = mb_get_le64(p);
    out->n_documents = mb_get_le64(p + 8);
    out->n_segments = mb_get_le64(p + 16);
    out->n_tokens = mb_get_le64(p + 24);
    out->text_bytes = mb_get_le64(p + 32);
    out->sum_lengths = mb_get_le64(p + 40);
    out->n_terms = mb_get_le64(p + 48);
    out->fitted_segments = mb_get_le64(p + 56);
    out->n_vectors = mb_get_le64(p + 64);
    out->next_docno = mb_get_le32(p + 72);
    out->next_segno = mb_get_le32(p + 76);
    out->next_term = mb_get_le32(p + 80);
    out->generation = mb_get_le32(p + 84);
    out->building = mb_get_le32(p + 88);
    out->next_generation = mb_get_le32(p + 92);
    out->dim = mb_get_le32(p + 96);
    out->settings.embedding = (mb_embedding_kind)mb_get_le32(p + 100);
    out->settings.dim = mb_get_le32(p + 104);
    out->settings.k1 = mb_get_lef32(p + 108);
    out->settings.b = mb_get_lef32(p + 112);
    out->settings.title_weight = mb_get_le32(p + 116);
    memcpy(out->settings.language, p + 120, sizeof(out->settings.language));
    out->id = mb_get_le32(p + 152);
    memcpy(out->name, p + COLLECTION_FIXED, name_size);
    return MB_OK;
}

/* ---- reading ---- */

static void
name_key(struct kv_key *key, struct mb_slice name)
{
    kv_key_init(key);
    kv_key_bytes(key, mb_slice_cstr(META_NAME_PREFIX));
    kv_key_bytes(key, name);
}

static void
drop_key(struct kv_key *key, mb_collection_id id)
{
    kv_key_init(key);
    kv_key_bytes(key, mb_slice_cstr(META_DROP_PREFIX));
    kv_key_u32(key, id);
}

static void
id_key(struct kv_key *key, mb_collection_id id)
{
    kv_key_init(key);
    kv_key_u32(key, id);
}

static mb_status
no_collection(struct mb_slice name, struct mb_error *err)
{
    int size =
        (int)(name.size < MB_MAX_COLLECTION_NAME ? name.size
                                                 : MB_MAX_COLLECTION_NAME);
    return mb_error_set(err, MB_ERR_NOT_FOUND, "no collection \"%.*s\"", size,
        (const char *)name.data);
}

/* Number of the collection with this name. */
static mb_status
find_id(struct kv_txn *txn, struct mb_slice name, mb_collection_id *id,
    struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;
    if (name.size == 0 || name.size > MB_MAX_COLLECTION_NAME)
        return no_collection(name, err);
    name_key(&key, name);
    mb_status st = kv_get(txn, KV_META, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return no_collection(name, err);
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    if (val.size != 4) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "name row of a collection has %zu bytes", val.size);
    }
    *id = mb_get_le32(val.data);
    return MB_OK;
}

mb_status
collection_read_id(struct kv_txn *txn, mb_collection_id id,
    struct mb_collection *out, struct mb_error *err)
{
    struct kv_key key;
    struct mb_slice val;
    id_key(&key, id);
    mb_status st = kv_get(txn, KV_COLLECTIONS, kv_key_slice(&key), &val);
    if (st == MB_ERR_NOT_FOUND)
        return mb_error_set(err, st, "no collection %u", (unsigned)id);
    if (st != MB_OK)
        return kv_txn_explain(txn, st, err);
    st = collection_decode(val, out);
    if (st == MB_OK && out->id != id)
        st = MB_ERR_CORRUPT;
    if (st != MB_OK) {
        return mb_error_set(
            err, st, "record of collection %u is damaged", (unsigned)id);
    }
    return MB_OK;
}

mb_status
collection_read(struct kv_txn *txn, struct mb_slice name,
    struct mb_collection *out, struct mb_error *err)
{
    mb_collection_id id;
    mb_status st = find_id(txn, name, &id, err);
    if (st != MB_OK)
        return st;
    st = collection_read_id(txn, id, out, err);
    if (st == MB_ERR_NOT_FOUND) {
        return mb_error_set(err, MB_ERR_CORRUPT,
            "collection %u has a name but no record", (unsigned)id);
    }
    return st;
}

mb_status
mb_collection_get(struct mb_snapshot *snap, struct mb_slice name,
    struct mb_collection *out, struct mb_error *err)
{
    error_begin(err);
    return collection_read(snap->txn, name, out, err);
}

mb_status
mb_collection_list(struct mb_snapshot *snap, struct mb_arena *arena,
    struct mb_collection **out, size_t *n, struct mb_error *err)
{
    error_begin(err);
    struct mb_slice prefix = mb_slice_cstr(META_NAME_PREFIX);
    struct mb_slice key;
    struct mb_slice val;
    struct kv_cursor *c = NULL;
    uint64_t rows;
    uint64_t bytes;
    size_t count = 0;
    mb_status st = kv_table_stats(snap->txn, KV_COLLECTIONS, &rows, &bytes);
    if (st == MB_OK)
        st = kv_cursor_open(snap->txn, KV_META, &c);
    if (st != MB_OK)
        return kv_txn_explain(snap->txn, st, err);
    struct mb_collection *list =
        mb_arena_calloc(arena, (size_t)rows + 1, sizeof(*list));
    if (list == NULL) {
        st = mb_error_set(err, MB_ERR_NOMEM, "list collections: out of memory");
        goto out;
    }
    st = kv_cursor_seek(c, prefix, &key, &val);
    while (st == MB_OK && kv_has_prefix(key, prefix)) {
        if (val.size != 4 || count == rows) {
            st = mb_error_set(
                err, MB_ERR_CORRUPT, "names and collections do not agree");
            goto out;
        }
        st = collection_read_id(
            snap->txn, mb_get_le32(val.data), &list[count], err);
        if (st != MB_OK)
            goto out;
        count++;
        st = kv_cursor_next(c, &key, &val);
    }
    if (st != MB_OK && st != MB_ERR_NOT_FOUND) {
        st = kv_txn_explain(snap->txn, st, err);
        goto out;
    }
    *out = list;
    *n = count;
    st = MB_OK;
out:
    kv_cursor_close(c);
    return st;
}

/* ---- records within a write transaction ---- */

mb_status
wtxn_collection_by_id(struct wtxn *w, mb_collection_id id, struct wcoll **out,
    struct mb_error *err)
{
    for (struct wcoll *wc = w->colls; wc != NULL; wc = wc->next) {
        if (wc->c.id != id)
            continue;
        if (wc->gone) {
            return mb_error_set(
                err, MB_ERR_NOT_FOUND, "no collection %u", (unsigned)id);
        }
        *out = wc;
        return MB_OK;
    }
    struct wcoll *wc = mb_calloc(1, sizeof(*wc));
    if (wc == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "out of memory");
    mb_status st = collection_read_id(w->txn, id, &wc->c, err);
    if (st != MB_OK) {
        mb_free(wc);
        return st;
    }
    wc->next = w->colls;
    w->colls = wc;
    *out = wc;
    return MB_OK;
}

mb_status
wtxn_collection(struct wtxn *w, struct mb_slice name, struct wcoll **out,
    struct mb_error *err)
{
    mb_collection_id id;
    // Name rows are written by create and drop themselves, so the table is
    // right even within this transaction.
    mb_status st = find_id(w->txn, name, &id, err);
    if (st != MB_OK)
        return st;
    return wtxn_collection_by_id(w, id, out, err);
}

mb_status
collection_flush(struct wtxn *w)
{
    uint8_t record[MAX_COLLECTION_RECORD];
    struct kv_key key;
    for (struct wcoll *wc = w->colls; wc != NULL; wc = wc->next) {
        if (!wc->dirty || wc->gone)
            continue;
        size_t size = collection_encode(&wc->c, record);
        id_key(&key, wc->c.id);
        mb_status st = kv_put(w->txn, KV_COLLECTIONS, kv_key_slice(&key),
            mb_slice_of(record, size));
        if (st != MB_OK)
            return st;
        wc->dirty = false;
    }
    return MB_OK;
}

void
collection_forget(struct wtxn *w)
{
    while (w->colls != NULL) {
        struct wcoll *next = w->colls->next;
        mb_free(w->colls);
        w->colls = next;
    }
}

/* ---- create and drop ---- */

/* Take the next number; NOT_FOUND in meta means that none was given yet. */
static mb_status
next_id(struct wtxn *w, mb_collection_id *id)
{
    uint8_t bytes[4];
    struct mb_slice key = mb_slice_cstr(META_NEXT_COLLECTION);
    struct mb_slice val;
    mb_status st = kv_get(w->txn, KV_META, key, &val);
    if (st == MB_OK && val.size != 4)
        return MB_ERR_CORRUPT;
    if (st != MB_OK && st != MB_ERR_NOT_FOUND)
        return st;
    *id = st == MB_OK ? mb_get_le32(val.data) : 1;
    if (*id == UINT32_MAX)
        return MB_ERR_TOO_LARGE;
    mb_put_le32(bytes, *id + 1);
    return kv_put(w->txn, KV_META, key, mb_slice_of(bytes, sizeof(bytes)));
}

static mb_status
check_name(struct mb_slice name, struct mb_error *err)
{
    if (name.size == 0 || name.size > MB_MAX_COLLECTION_NAME) {
        return mb_error_set(err, MB_ERR_BAD_ARG,
            "collection name has %zu bytes, must have 1 to %d", name.size,
            MB_MAX_COLLECTION_NAME);
    }
    if (!mb_utf8_is_valid(name, NULL)) {
        return mb_error_set(
            err, MB_ERR_BAD_TEXT, "collection name is not valid UTF-8");
    }
    for (size_t i = 0; i < name.size; i++) {
        if (name.data[i] < 0x20 || name.data[i] == 0x7f) {
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "collection name has a control character at byte %zu", i);
        }
    }
    return MB_OK;
}

/* One that is there already: fine only if asked for and alike. */
static mb_status
check_existing(const struct mb_collection *c,
    const struct mb_collection_settings *settings, bool exist_ok,
    struct mb_error *err)
{
    if (!exist_ok) {
        return mb_error_set(
            err, MB_ERR_EXISTS, "collection \"%s\" exists already", c->name);
    }
    if (!settings_agree(&c->settings, settings)) {
        return mb_error_set(err, MB_ERR_MISMATCH,
            "collection \"%s\" exists with other settings", c->name);
    }
    return MB_OK;
}

mb_status
collection_create(struct wtxn *w, struct mb_slice name,
    const struct mb_collection_settings *settings, bool exist_ok,
    struct mb_error *err)
{
    struct kv_key key;
    uint8_t bytes[4];
    struct wcoll *wc;
    mb_status st = check_name(name, err);
    if (st == MB_OK)
        st = mb_collection_settings_check(settings, err);
    if (st != MB_OK)
        return st;
    struct mb_collection_settings full = complete_settings(settings);
    st = wtxn_collection(w, name, &wc, NULL);
    if (st == MB_OK)
        return check_existing(&wc->c, &full, exist_ok, err);
    if (st != MB_ERR_NOT_FOUND)
        return kv_txn_explain(w->txn, st, err);
    wc = mb_calloc(1, sizeof(*wc));
    if (wc == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "create: out of memory");
    w->changed = true;
    wc->next = w->colls;
    w->colls = wc;
    wc->dirty = true;
    st = next_id(w, &wc->c.id);
    if (st != MB_OK)
        return kv_txn_explain(w->txn, st, err);
    memcpy(wc->c.name, name.data, name.size);
    wc->c.settings = full;
    wc->c.created_ms = mb_clock_wall_ms();
    wc->c.next_generation = 1;
    mb_put_le32(bytes, wc->c.id);
    name_key(&key, name);
    st = kv_put(
        w->txn, KV_META, kv_key_slice(&key), mb_slice_of(bytes, sizeof(bytes)));
    if (st == MB_OK && full.embedding == MB_EMBED_CLIENT)
        st = dense_create_flat(w, wc, full.dim, err);
    return kv_txn_explain(w->txn, st, err);
}

mb_status
collection_drop(struct wtxn *w, struct mb_slice name, struct mb_error *err)
{
    struct kv_key key;
    struct wcoll *wc;
    uint8_t none[1] = {0};
    mb_status st = wtxn_collection(w, name, &wc, err);
    if (st != MB_OK)
        return st;
    w->changed = true;
    w->erased = true;
    w->dropped = true;
    wc->gone = true;
    // What this transaction gathered for it must not be written any more; the
    // erasing that follows would miss it.
    st = lex_flush(w, err);
    name_key(&key, name);
    if (st == MB_OK)
        st = kv_del(w->txn, KV_META, kv_key_slice(&key));
    id_key(&key, wc->c.id);
    if (st == MB_OK)
        st = kv_del(w->txn, KV_COLLECTIONS, kv_key_slice(&key));
    if (st == MB_ERR_NOT_FOUND)
        st = MB_OK; // made in this very transaction, not flushed yet
    if (st == MB_OK)
        st = note_drop_all(w, wc->c.id);
    drop_key(&key, wc->c.id);
    if (st == MB_OK) {
        st = kv_put(w->txn, KV_META, kv_key_slice(&key),
            mb_slice_of(none, sizeof(none)));
    }
    return kv_txn_explain(w->txn, st, err);
}

mb_status
collection_dropping(struct kv_txn *txn, mb_collection_id *id)
{
    struct mb_slice prefix = mb_slice_cstr(META_DROP_PREFIX);
    struct mb_slice key;
    struct kv_cursor *c;
    mb_status st = kv_cursor_open(txn, KV_META, &c);
    if (st != MB_OK)
        return st;
    st = kv_cursor_seek(c, prefix, &key, NULL);
    if (st == MB_OK && !kv_has_prefix(key, prefix))
        st = MB_ERR_NOT_FOUND;
    if (st == MB_OK && key.size != prefix.size + 4)
        st = MB_ERR_CORRUPT;
    if (st == MB_OK)
        *id = mb_get_be32(key.data + prefix.size);
    kv_cursor_close(c);
    return st;
}

bool
collection_is_dropping(struct kv_txn *txn, mb_collection_id id)
{
    struct kv_key key;
    struct mb_slice val;
    drop_key(&key, id);
    return kv_get(txn, KV_META, kv_key_slice(&key), &val) == MB_OK;
}

mb_status
collection_erase_slice(
    struct wtxn *w, mb_collection_id id, size_t max, bool *done)
{
    struct kv_key key;
    size_t left = max;
    id_key(&key, id);
    for (unsigned t = KV_COLLECTIONS; t < KV_N_TABLES && left > 0; t++) {
        size_t n;
        if (t == KV_BLOCKS || t == KV_CONTEXTS)
            continue; // keys begin with another number
        mb_status st = kv_del_prefix(
            w->txn, (enum kv_table)t, kv_key_slice(&key), left, &n);
        if (st != MB_OK)
            return st;
        left -= n;
    }
    w->changed = true;
    w->erased = true;
    *done = left > 0;
    if (!*done)
        return MB_OK;
    drop_key(&key, id);
    return kv_del(w->txn, KV_META, kv_key_slice(&key));
}
