/* SPDX-License-Identifier: Apache-2.0
 * tests/integration/test_client_session.c - every call of membank.h against a
 * real daemon, and a client that outlives its daemon. */
#include "mb_test.h"

#include <math.h>

#include "mb_server.h"
#include "membank.h"

static const struct membank_bytes no_bytes;

struct session {
    struct mb_server server;
    struct membank *mb;
};

#define check_ok(call)                                                         \
    do {                                                                       \
        if ((call) != MEMBANK_OK)                                              \
            fail_msg("%s: %s: %s", #call, membank_status_name(err.status),     \
                err.text);                                                     \
    } while (0)

static int
setup(void **state)
{
    struct session *s = mb_calloc(1, sizeof *s);
    mb_server_begin(&s->server, NULL);
    s->mb = mb_server_connect(&s->server);
    *state = s;
    return 0;
}

static int
teardown(void **state)
{
    struct session *s = *state;
    membank_close(s->mb);
    mb_server_end(&s->server);
    mb_free(s);
    return 0;
}

/* {"key": value}, to be freed with membank_pack_free. */
static struct membank_pack *
pack_pair(const char *key, const char *value, struct membank_bytes *out)
{
    struct membank_pack *p = membank_pack_new();
    membank_pack_map(p, 1);
    membank_pack_str(p, key);
    membank_pack_str(p, value);
    assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, out));
    return p;
}

static void
put_three(struct membank *mb, const char *collection)
{
    static const struct membank_field kitchen[] = {
        {"topic", MEMBANK_FIELD_STR, {.s = "kitchen"}},
        {"year", MEMBANK_FIELD_INT, {.i = 2024}}};
    static const struct membank_field garage[] = {
        {"topic", MEMBANK_FIELD_STR, {.s = "garage"}}};
    const struct membank_document docs[] = {
        {.id = "1",
            .title = "Tea",
            .text = "Green tea wants cooler water.",
            .fields = kitchen,
            .n_fields = 2},
        {.id = "2",
            .title = "Key",
            .text = "The key hangs behind the clock.",
            .fields = garage,
            .n_fields = 1},
        {.id = "3", .text = "Water the plants each Friday."},
    };
    struct membank_put_result result;
    struct membank_error err;
    check_ok(membank_create(mb, collection, NULL, &err));
    check_ok(membank_put(mb, collection, docs, 3, NULL, &result, &err));
    assert_int_equal(3, result.stored);
    assert_int_equal(3, result.segments);
}

/* ---- tests ---- */

static void
test_ping_tells_version_and_protocol(void **state)
{
    struct session *s = *state;
    struct membank_server server;
    struct membank_error err;
    check_ok(membank_ping(s->mb, &server, &err));
    assert_string_equal(membank_version(), server.version);
    assert_int_equal(1, server.protocol);
    assert_true(strlen(server.model) > 0);
}

static void
test_collections_are_made_listed_and_dropped(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    const struct membank_create_options again = {.exist_ok = true};
    const struct membank_create_options other = {
        .language = "german", .exist_ok = true};
    check_ok(membank_create(s->mb, "a", NULL, &err));
    assert_int_equal(
        MEMBANK_ERR_EXISTS, membank_create(s->mb, "a", NULL, &err));
    check_ok(membank_create(s->mb, "a", &again, &err));
    assert_int_equal(
        MEMBANK_ERR_MISMATCH, membank_create(s->mb, "a", &other, &err));
    struct membank_reply *reply = NULL;
    check_ok(membank_collections(s->mb, &reply, &err));
    assert_int_equal(1, membank_value_size(membank_value_get(
                            membank_reply_result(reply), "collections")));
    membank_reply_free(reply);
    check_ok(membank_stats(s->mb, "a", &reply, &err));
    assert_non_null(membank_reply_result(reply));
    membank_reply_free(reply);
    check_ok(membank_drop(s->mb, "a", &err));
    assert_int_equal(MEMBANK_ERR_NOT_FOUND, membank_drop(s->mb, "a", &err));
    assert_error_has(err, "a");
}

static void
test_documents_are_put_read_and_replaced(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_documents *docs = NULL;
    struct membank_put_result result;
    put_three(s->mb, "a");
    check_ok(membank_get(s->mb, "a", "1", &docs, &err));
    const struct membank_stored *doc = membank_documents_at(docs, 0);
    assert_string_equal("1", doc->id);
    assert_string_equal("Tea", doc->title);
    assert_string_equal("Green tea wants cooler water.", doc->text);
    assert_int_equal(29, doc->text_size);
    assert_int_equal(1, doc->n_segments);
    assert_true(doc->n_tokens > 0 && doc->added_ms > 0);
    assert_true(doc->meta.size > 0);
    membank_documents_free(docs);
    const struct membank_document changed[] = {
        {.id = "3", .text = "Water the plants each Friday."},
        {.id = "2", .text = "The key is lost."},
    };
    check_ok(membank_put(s->mb, "a", changed, 2, NULL, &result, &err));
    assert_int_equal(1, result.unchanged);
    assert_int_equal(1, result.replaced);
    check_ok(membank_get(s->mb, "a", "2", &docs, &err));
    assert_string_equal(
        "The key is lost.", membank_documents_at(docs, 0)->text);
    membank_documents_free(docs);
    assert_int_equal(
        MEMBANK_ERR_NOT_FOUND, membank_get(s->mb, "a", "4", &docs, &err));
    assert_int_equal(
        MEMBANK_ERR_NOT_FOUND, membank_get(s->mb, "b", "1", &docs, &err));
}

static void
test_list_goes_on_where_it_ended(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_documents *docs = NULL;
    struct membank_bytes filter;
    put_three(s->mb, "a");
    check_ok(membank_list(s->mb, "a", NULL, 2, no_bytes, &docs, &err));
    assert_int_equal(2, membank_documents_count(docs));
    assert_string_equal("2", membank_documents_at(docs, 1)->id);
    membank_documents_free(docs);
    check_ok(membank_list(s->mb, "a", "2", 2, no_bytes, &docs, &err));
    assert_int_equal(1, membank_documents_count(docs));
    assert_string_equal("3", membank_documents_at(docs, 0)->id);
    membank_documents_free(docs);
    struct membank_pack *p = pack_pair("topic", "garage", &filter);
    check_ok(membank_list(s->mb, "a", NULL, 0, filter, &docs, &err));
    assert_int_equal(1, membank_documents_count(docs));
    assert_string_equal("2", membank_documents_at(docs, 0)->id);
    membank_documents_free(docs);
    membank_pack_free(p);
}

static void
test_delete_by_id_and_by_filter_is_at_once(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_documents *docs = NULL;
    struct membank_bytes filter;
    uint64_t n = 0;
    const char *const ids[] = {"1", "none"};
    put_three(s->mb, "a");
    check_ok(membank_delete(s->mb, "a", ids, 2, &n, &err));
    assert_int_equal(1, n);
    struct membank_pack *p = pack_pair("topic", "garage", &filter);
    check_ok(membank_delete_where(s->mb, "a", filter, &n, &err));
    assert_int_equal(1, n);
    membank_pack_free(p);
    check_ok(membank_list(s->mb, "a", NULL, 0, no_bytes, &docs, &err));
    assert_int_equal(1, membank_documents_count(docs));
    membank_documents_free(docs);
}

static void
test_query_finds_in_all_modes_and_heeds_filters(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_hits *hits = NULL;
    struct membank_bytes filter;
    static const char *const fields[] = {"title"};
    put_three(s->mb, "a");
    struct membank_query_options q = {
        .collection = "a", .text = "where does the key hang", .k = 1};
    check_ok(membank_query(s->mb, &q, &hits, &err));
    assert_int_equal(1, membank_hits_count(hits));
    const struct membank_hit *hit = membank_hits_at(hits, 0);
    assert_string_equal("2", hit->id);
    assert_string_equal("Key", hit->title);
    assert_string_equal("The key hangs behind the clock.", hit->text);
    assert_int_equal(0, hit->start);
    assert_int_equal(31, hit->end);
    assert_true(hit->score > 0 && hit->lexical > 0);
    assert_true(hit->meta.size > 0);
    membank_hits_free(hits);
    q = (struct membank_query_options){.collection = "a",
        .text = "water",
        .mode = MEMBANK_MODE_LEXICAL,
        .fields = fields,
        .n_fields = 1};
    struct membank_pack *p = pack_pair("topic", "kitchen", &filter);
    check_ok(membank_query(s->mb, &q, &hits, &err));
    assert_int_equal(2, membank_hits_count(hits));
    assert_null(membank_hits_at(hits, 0)->text);
    membank_hits_free(hits);
    q.filter = filter;
    check_ok(membank_query(s->mb, &q, &hits, &err));
    assert_int_equal(1, membank_hits_count(hits));
    assert_string_equal("1", membank_hits_at(hits, 0)->id);
    assert_string_equal("Tea", membank_hits_at(hits, 0)->title);
    membank_hits_free(hits);
    membank_pack_free(p);
}

static void
test_client_vectors_are_stored_and_searched(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_hits *hits = NULL;
    const struct membank_create_options create = {
        .embedding = MEMBANK_EMBED_CLIENT, .dim = 4};
    const float x[] = {1, 0, 0, 0};
    const float y[] = {0, 1, 0, 0};
    const float bad[] = {NAN, 0, 0, 0};
    struct membank_document docs[] = {
        {.id = "x", .text = "first", .vector = x, .dim = 4},
        {.id = "y", .text = "second", .vector = y, .dim = 4},
    };
    const struct membank_put_options wait = {.wait_searchable = true};
    check_ok(membank_create(s->mb, "v", &create, &err));
    check_ok(membank_put(s->mb, "v", docs, 2, &wait, NULL, &err));
    const struct membank_query_options q = {.collection = "v",
        .vector = y,
        .dim = 4,
        .k = 1,
        .mode = MEMBANK_MODE_DENSE};
    check_ok(membank_query(s->mb, &q, &hits, &err));
    assert_int_equal(1, membank_hits_count(hits));
    assert_string_equal("y", membank_hits_at(hits, 0)->id);
    assert_true(fabs(membank_hits_at(hits, 0)->dense - 1) < 0.02);
    membank_hits_free(hits);
    docs[0].dim = 3;
    assert_int_equal(MEMBANK_ERR_MISMATCH,
        membank_put(s->mb, "v", docs, 1, NULL, NULL, &err));
    docs[0].dim = 4;
    docs[0].vector = bad;
    assert_int_equal(MEMBANK_ERR_BAD_ARG,
        membank_put(s->mb, "v", docs, 1, NULL, NULL, &err));
    assert_error_has(err, "not finite");
}

static void
test_bad_text_is_refused_or_repaired(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_documents *docs = NULL;
    const struct membank_document doc = {.id = "1", .text = "caf\xe9 au lait"};
    const struct membank_put_options repair = {.repair_utf8 = true};
    check_ok(membank_create(s->mb, "a", NULL, &err));
    assert_int_equal(MEMBANK_ERR_BAD_TEXT,
        membank_put(s->mb, "a", &doc, 1, NULL, NULL, &err));
    assert_error_has(err, "3");
    check_ok(membank_put(s->mb, "a", &doc, 1, &repair, NULL, &err));
    check_ok(membank_get(s->mb, "a", "1", &docs, &err));
    assert_string_equal(
        "caf\xef\xbf\xbd au lait", membank_documents_at(docs, 0)->text);
    membank_documents_free(docs);
}

/* A new collection of 100 notes, enough for an embedding, which is awaited. */
static void
put_notes(struct membank *mb, const char *collection)
{
    struct membank_error err;
    static char ids[100][16];
    static char bodies[100][128];
    struct membank_document docs[100];
    for (size_t i = 0; i < 100; i++) {
        snprintf(ids[i], sizeof ids[i], "%zu", i);
        snprintf(bodies[i], sizeof bodies[i],
            "Note %zu is about subject three and number%zu, group%zu.", i,
            i % 10, i % 7);
        docs[i] = (struct membank_document){.id = ids[i], .text = bodies[i]};
    }
    const struct membank_put_options wait = {.wait_searchable = true};
    check_ok(membank_create(mb, collection, NULL, &err));
    check_ok(membank_put(mb, collection, docs, 100, &wait, NULL, &err));
}

static void
test_embed_gives_rows_once_there_is_an_embedding(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_vectors *v = NULL;
    const char *const texts[] = {"subject three", "of nothing known"};
    put_notes(s->mb, "a");
    check_ok(membank_embed(s->mb, "a", texts, 2, &v, &err));
    assert_int_equal(2, membank_vectors_count(v));
    assert_true(membank_vectors_dim(v) > 0);
    double norm = 0;
    for (size_t i = 0; i < membank_vectors_dim(v); i++)
        norm += pow((double)membank_vectors_row(v, 0)[i], 2);
    assert_true(fabs(norm - 1) < 1e-3);
    membank_vectors_free(v);
}

static uint64_t
number_of(const struct membank_value *map, const char *key)
{
    return membank_value_u64(membank_value_get(map, key), UINT64_MAX);
}

static void
test_pending_is_none_when_the_embedding_knows_no_term(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_reply *reply = NULL;
    const struct membank_document odd = {.id = "odd", .text = "zyzzogeton"};
    const struct membank_put_options wait = {.wait_searchable = true};
    put_notes(s->mb, "a");
    check_ok(membank_put(s->mb, "a", &odd, 1, &wait, NULL, &err));
    check_ok(membank_stats(s->mb, "a", &reply, &err));
    const struct membank_value *a = membank_value_at(
        membank_value_get(membank_reply_result(reply), "collections"), 0);
    assert_int_equal(101, number_of(a, "segments"));
    assert_int_equal(100, number_of(membank_value_get(a, "dense"), "vectors"));
    assert_int_equal(0, number_of(a, "pending"));
    membank_reply_free(reply);
}

static void
test_pipelined_puts_are_all_there(void **state)
{
    struct session *s = *state;
    struct membank_error err;

    enum { N = 100, AT_ONCE = 16 };

    size_t sent = 0;
    size_t done = 0;
    check_ok(membank_create(s->mb, "a", NULL, &err));
    while (done < N) {
        while (sent < N && sent - done < AT_ONCE) {
            char id[16];
            struct membank_bytes args;
            uint64_t ticket;
            struct membank_pack *p = membank_pack_new();
            snprintf(id, sizeof id, "%03zu", sent);
            membank_pack_map(p, 2);
            membank_pack_str(p, "collection");
            membank_pack_str(p, "a");
            membank_pack_str(p, "documents");
            membank_pack_array(p, 1);
            membank_pack_map(p, 2);
            membank_pack_str(p, "id");
            membank_pack_str(p, id);
            membank_pack_str(p, "text");
            membank_pack_str(p, "A note like any other.");
            assert_int_equal(MEMBANK_OK, membank_pack_bytes(p, &args));
            check_ok(membank_send(s->mb, "put", args, &ticket, &err));
            membank_pack_free(p);
            sent++;
        }
        struct membank_reply *reply = NULL;
        check_ok(membank_poll(s->mb, 30000, &reply, &err));
        assert_string_equal("", membank_reply_error(reply));
        membank_reply_free(reply);
        done++;
    }
    struct membank_documents *docs = NULL;
    check_ok(membank_list(s->mb, "a", NULL, 1000, no_bytes, &docs, &err));
    assert_int_equal(N, membank_documents_count(docs));
    membank_documents_free(docs);
}

static void
test_client_when_daemon_is_killed_then_goes_on_with_the_next(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    struct membank_documents *docs = NULL;
    put_three(s->mb, "a");
    mb_server_kill(&s->server);
    mb_server_start(&s->server, NULL);
    // The loss may be told by one call, no more.
    membank_status st = membank_get(s->mb, "a", "1", &docs, &err);
    if (st == MEMBANK_ERR_UNREACHABLE)
        st = membank_get(s->mb, "a", "1", &docs, &err);
    if (st != MEMBANK_OK)
        fail_msg("%s", err.text);
    assert_string_equal("Tea", membank_documents_at(docs, 0)->title);
    membank_documents_free(docs);
}

static void
test_op_is_refused_by_name(void **state)
{
    struct session *s = *state;
    struct membank_error err;
    assert_int_equal(MEMBANK_ERR_BAD_ARG,
        membank_call(s->mb, "bank.train", no_bytes, NULL, &err));
    assert_error_has(err, "collection");
    assert_int_equal(MEMBANK_ERR_UNKNOWN_OP,
        membank_call(s->mb, "frobnicate", no_bytes, NULL, &err));
    assert_error_has(err, "frobnicate");
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_ping_tells_version_and_protocol),
        TEST(test_collections_are_made_listed_and_dropped),
        TEST(test_documents_are_put_read_and_replaced),
        TEST(test_list_goes_on_where_it_ended),
        TEST(test_delete_by_id_and_by_filter_is_at_once),
        TEST(test_query_finds_in_all_modes_and_heeds_filters),
        TEST(test_client_vectors_are_stored_and_searched),
        TEST(test_bad_text_is_refused_or_repaired),
        TEST(test_embed_gives_rows_once_there_is_an_embedding),
        TEST(test_pending_is_none_when_the_embedding_knows_no_term),
        TEST(test_pipelined_puts_are_all_there),
        TEST(test_client_when_daemon_is_killed_then_goes_on_with_the_next),
        TEST(test_op_is_refused_by_name),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
