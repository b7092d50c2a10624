/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_client_calls.c - what the calls send, and what they make of
 * the replies.
 *
 * A peer on a ROUTER socket in the test's own thread stands for the daemon: a
 * call runs in a second thread, the test looks at the request and answers. */
#include "mb_test.h"

#include <math.h>

#include "membank.h"
#include "peer.h"

/* ---- a call in its own thread ---- */

struct call {
    struct peer *peer;
    membank_status (*fn)(struct membank *mb, struct call *call);
    membank_status status;
    struct membank_error err;
    void *out; /* what the call gave */
    uint64_t number;
};

static void
run_call(void *arg)
{
    struct call *call = arg;
    struct membank *mb = NULL;
    const struct membank_options opt = {
        .endpoint = call->peer->endpoint, .timeout_ms = 20000};
    call->status = membank_open(&opt, &mb, &call->err);
    if (call->status == MEMBANK_OK)
        call->status = call->fn(mb, call);
    membank_close(mb);
}

/* Run the call; its request must have this op and these args (in the notation
 * of mb_render.h); answer it with the msgpack of `reply`. */
static void
exchange(struct call *call,
    membank_status (*fn)(struct membank *mb, struct call *call), const char *op,
    const char *args, void (*result)(struct mb_writer *w))
{
    struct peer peer;
    struct mb_thread *thread = NULL;
    *call = (struct call){.peer = &peer, .fn = fn};
    peer_begin(&peer);
    assert_ok(mb_thread_start(&thread, "mb-call", run_call, call));
    struct peer_request r;
    peer_receive(&peer, &r);
    char got_op[64];
    char got_args[4096];
    snprintf(got_op, sizeof got_op, "%s", r.op);
    snprintf(got_args, sizeof got_args, "%s", r.args);
    peer_reply(&peer, &r, result);
    peer_request_end(&r);
    mb_thread_join(thread);
    peer_end(&peer);
    assert_string_equal(op, got_op);
    assert_string_equal(args, got_args);
}

static void
empty_result(struct mb_writer *w)
{
    mb_write_map(w, 0);
}

/* ---- ping, collections ---- */

static membank_status
call_ping(struct membank *mb, struct call *call)
{
    static struct membank_server server;
    call->out = &server;
    return membank_ping(mb, &server, &call->err);
}

static void
ping_result(struct mb_writer *w)
{
    mb_write_map(w, 5);
    mb_write_kv_cstr(w, "version", "0.1.0");
    mb_write_kv_uint(w, "protocol", 1);
    // Longer than its field, with a character across the cut.
    char name[160];
    memset(name, 'x', sizeof name);
    memcpy(name + 126, "\xc3\xa9", 2);
    mb_write_kv_str(w, "model", mb_slice_of(name, sizeof name));
    mb_write_kv_f64(w, "uptime_s", 1.5);
    mb_write_kv_uint(w, "max_message_bytes", 4096);
}

static void
test_ping_reads_the_server(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_ping, "ping", "{}", ping_result);
    assert_int_equal(MEMBANK_OK, call.status);
    const struct membank_server *server = call.out;
    assert_string_equal("0.1.0", server->version);
    assert_int_equal(1, server->protocol);
    assert_int_equal(126, strlen(server->model));
    assert_true(server->uptime_s == 1.5);
    assert_int_equal(4096, server->max_message_bytes);
}

static membank_status
call_ping_only(struct membank *mb, struct call *call)
{
    return membank_ping(mb, NULL, &call->err);
}

static void
test_ping_without_out_is_fine(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_ping_only, "ping", "{}", empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
}

static membank_status
call_create(struct membank *mb, struct call *call)
{
    static const uint8_t extra[] = {0x81, 0xa2, 'k', '1', 0x02};
    const struct membank_create_options opt = {.language = "german",
        .embedding = MEMBANK_EMBED_CLIENT,
        .dim = 4,
        .exist_ok = true,
        .extra = {extra, sizeof extra}};
    return membank_create(mb, "notes", &opt, &call->err);
}

static membank_status
call_create_default(struct membank *mb, struct call *call)
{
    return membank_create(mb, "notes", NULL, &call->err);
}

static membank_status
call_drop(struct membank *mb, struct call *call)
{
    return membank_drop(mb, "notes", &call->err);
}

static void
test_create_and_drop_send_name_and_settings(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_create, "create",
        "{\"name\":\"notes\",\"exist_ok\":true,\"settings\":{\"language\":"
        "\"german\",\"embedding\":{\"kind\":\"client\",\"dim\":4},\"k1\":2}}",
        empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
    exchange(&call, call_create_default, "create",
        "{\"name\":\"notes\",\"settings\":{}}", empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
    exchange(&call, call_drop, "drop", "{\"name\":\"notes\"}", empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
}

static membank_status
call_collections(struct membank *mb, struct call *call)
{
    struct membank_reply *reply = NULL;
    membank_status st = membank_collections(mb, &reply, &call->err);
    call->out = reply;
    return st;
}

static void
collections_result(struct mb_writer *w)
{
    mb_write_map(w, 1);
    mb_write_cstr(w, "collections");
    mb_write_array(w, 1);
    mb_write_map(w, 1);
    mb_write_kv_cstr(w, "name", "notes");
}

static void
test_collections_gives_the_reply_whole(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_collections, "collections", "{}", collections_result);
    struct membank_reply *reply = call.out;
    const struct membank_value *list =
        membank_value_get(membank_reply_result(reply), "collections");
    assert_int_equal(1, membank_value_size(list));
    size_t n = 0;
    const char *name = membank_value_str(
        membank_value_get(membank_value_at(list, 0), "name"), &n);
    assert_int_equal(5, n);
    assert_memory_equal("notes", name, 5);
    // The bytes are those of the result alone.
    struct membank_bytes bytes = membank_reply_bytes(reply);
    struct mb_buffer want;
    struct mb_writer w;
    mb_buffer_init(&want, 100);
    mb_writer_init(&w, &want);
    collections_result(&w);
    assert_int_equal(want.size, bytes.size);
    assert_memory_equal(want.data, bytes.data, want.size);
    mb_buffer_fini(&want);
    membank_reply_free(reply);
}

static membank_status
call_stats(struct membank *mb, struct call *call)
{
    return membank_stats(mb, "notes", NULL, &call->err);
}

static membank_status
call_stats_of_all(struct membank *mb, struct call *call)
{
    return membank_stats(mb, NULL, NULL, &call->err);
}

static void
test_stats_names_the_collection_if_there_is_one(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(
        &call, call_stats, "stats", "{\"collection\":\"notes\"}", empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
    exchange(&call, call_stats_of_all, "stats", "{}", empty_result);
    assert_int_equal(MEMBANK_OK, call.status);
}

/* ---- put ---- */

static membank_status
call_put(struct membank *mb, struct call *call)
{
    static struct membank_put_result result;
    static const uint8_t meta[] = {0x81, 0xa1, 'a', 0x07};
    static const float vector[] = {0.5f, -1.0f};
    static const struct membank_field fields[] = {
        {"s", MEMBANK_FIELD_STR, {.s = "x"}},
        {"i", MEMBANK_FIELD_INT, {.i = -1}},
        {"f", MEMBANK_FIELD_FLOAT, {.f = 0.5}},
        {"b", MEMBANK_FIELD_BOOL, {.b = true}},
    };
    const struct membank_document docs[] = {
        {.id = "1", .title = "T", .text = "one", .meta = {meta, sizeof meta}},
        {.id = "2",
            .text = "a\0b",
            .text_size = 3,
            .fields = fields,
            .n_fields = 4},
        {.id = "3", .text = "", .vector = vector, .dim = 2},
    };
    const struct membank_put_options opt = {
        .wait_searchable = true, .repair_utf8 = true};
    call->out = &result;
    return membank_put(mb, "notes", docs, 3, &opt, &result, &call->err);
}

static void
put_result(struct mb_writer *w)
{
    mb_write_map(w, 4);
    mb_write_kv_uint(w, "stored", 1);
    mb_write_kv_uint(w, "replaced", 2);
    mb_write_kv_uint(w, "unchanged", 3);
    mb_write_kv_uint(w, "segments", 4);
}

static void
test_put_sends_documents_and_reads_counts(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_put, "put",
        "{\"collection\":\"notes\",\"wait\":\"searchable\",\"repair\":true,"
        "\"documents\":["
        "{\"id\":\"1\",\"title\":\"T\",\"text\":\"one\",\"meta\":{\"a\":7}},"
        "{\"id\":\"2\",\"text\":\"a?b\",\"meta\":{\"s\":\"x\",\"i\":-1,"
        "\"f\":0.5f,\"b\":true}},"
        "{\"id\":\"3\",\"text\":\"\",\"vector\":<0000003f000080bf>}]}",
        put_result);
    assert_int_equal(MEMBANK_OK, call.status);
    const struct membank_put_result *result = call.out;
    assert_int_equal(1, result->stored);
    assert_int_equal(2, result->replaced);
    assert_int_equal(3, result->unchanged);
    assert_int_equal(4, result->segments);
}

/* ---- get, list, delete ---- */

static membank_status
call_get(struct membank *mb, struct call *call)
{
    struct membank_documents *docs = NULL;
    membank_status st = membank_get(mb, "notes", "7", &docs, &call->err);
    call->out = docs;
    return st;
}

static void
write_stored(struct mb_writer *w)
{
    mb_write_map(w, 8);
    mb_write_kv_cstr(w, "id", "7");
    mb_write_kv_cstr(w, "title", "T");
    mb_write_kv_str(w, "text", mb_slice_of("a\0b", 3));
    mb_write_cstr(w, "meta");
    mb_write_map(w, 1);
    mb_write_kv_uint(w, "a", 7);
    mb_write_kv_uint(w, "segments", 2);
    mb_write_kv_uint(w, "tokens", 300);
    mb_write_kv_uint(w, "text_bytes", 3);
    mb_write_kv_uint(w, "added_ms", 12345);
}

static void
test_get_reads_a_document(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_get, "get", "{\"collection\":\"notes\",\"id\":\"7\"}",
        write_stored);
    assert_int_equal(MEMBANK_OK, call.status);
    struct membank_documents *docs = call.out;
    assert_int_equal(1, membank_documents_count(docs));
    const struct membank_stored *doc = membank_documents_at(docs, 0);
    assert_string_equal("7", doc->id);
    assert_string_equal("T", doc->title);
    assert_int_equal(3, doc->text_size);
    assert_memory_equal("a\0b", doc->text, 4); // with its NUL
    assert_int_equal(4, doc->meta.size);
    assert_memory_equal("\x81\xa1\x61\x07", doc->meta.data, 4);
    assert_int_equal(2, doc->n_segments);
    assert_int_equal(300, doc->n_tokens);
    assert_int_equal(3, doc->text_bytes);
    assert_int_equal(12345, doc->added_ms);
    assert_null(membank_documents_at(docs, 1));
    membank_documents_free(docs);
}

static membank_status
call_list(struct membank *mb, struct call *call)
{
    static const uint8_t filter[] = {0x81, 0xa1, 'a', 0x07};
    struct membank_documents *docs = NULL;
    membank_status st = membank_list(mb, "notes", "6", 10,
        (struct membank_bytes){filter, sizeof filter}, &docs, &call->err);
    call->out = docs;
    return st;
}

static void
list_result(struct mb_writer *w)
{
    mb_write_map(w, 2);
    mb_write_cstr(w, "documents");
    mb_write_array(w, 2);
    mb_write_map(w, 1);
    mb_write_kv_cstr(w, "id", "7");
    mb_write_map(w, 1);
    mb_write_kv_cstr(w, "id", "8");
    mb_write_cstr(w, "next");
    mb_write_nil(w);
}

static void
test_list_reads_documents_without_text(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_list, "list",
        "{\"collection\":\"notes\",\"after\":\"6\",\"limit\":10,"
        "\"filter\":{\"a\":7}}",
        list_result);
    assert_int_equal(MEMBANK_OK, call.status);
    struct membank_documents *docs = call.out;
    assert_int_equal(2, membank_documents_count(docs));
    assert_string_equal("8", membank_documents_at(docs, 1)->id);
    assert_string_equal("", membank_documents_at(docs, 1)->title);
    assert_null(membank_documents_at(docs, 1)->text);
    assert_int_equal(0, membank_documents_at(docs, 1)->meta.size);
    membank_documents_free(docs);
}

static membank_status
call_delete(struct membank *mb, struct call *call)
{
    const char *const ids[] = {"1", "2"};
    return membank_delete(mb, "notes", ids, 2, &call->number, &call->err);
}

static membank_status
call_delete_where(struct membank *mb, struct call *call)
{
    static const uint8_t filter[] = {0x81, 0xa1, 'a', 0x07};
    return membank_delete_where(mb, "notes",
        (struct membank_bytes){filter, sizeof filter}, &call->number,
        &call->err);
}

static void
delete_result(struct mb_writer *w)
{
    mb_write_map(w, 1);
    mb_write_kv_uint(w, "deleted", 2);
}

static void
test_delete_by_id_and_by_filter(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_delete, "delete",
        "{\"collection\":\"notes\",\"ids\":[\"1\",\"2\"]}", delete_result);
    assert_int_equal(MEMBANK_OK, call.status);
    assert_int_equal(2, call.number);
    exchange(&call, call_delete_where, "delete",
        "{\"collection\":\"notes\",\"filter\":{\"a\":7}}", delete_result);
    assert_int_equal(MEMBANK_OK, call.status);
    assert_int_equal(2, call.number);
}

/* ---- query, embed ---- */

static membank_status
call_query(struct membank *mb, struct call *call)
{
    static const char *const fields[] = {"text"};
    static const uint8_t extra[] = {0x81, 0xa1, 'x', 0xc3};
    static const float vector[] = {1.0f};
    const struct membank_query_options opt = {.collection = "notes",
        .text = "why",
        .vector = vector,
        .dim = 1,
        .k = 3,
        .mode = MEMBANK_MODE_DENSE,
        .filter = {"\x80", 1},
        .fields = fields,
        .n_fields = 1,
        .extra = {extra, sizeof extra}};
    struct membank_hits *hits = NULL;
    membank_status st = membank_query(mb, &opt, &hits, &call->err);
    call->out = hits;
    return st;
}

static membank_status
call_query_plain(struct membank *mb, struct call *call)
{
    const struct membank_query_options opt = {
        .collection = "notes", .text = "why"};
    struct membank_hits *hits = NULL;
    membank_status st = membank_query(mb, &opt, &hits, &call->err);
    call->out = hits;
    return st;
}

static void
query_result(struct mb_writer *w)
{
    mb_write_map(w, 2);
    mb_write_kv_uint(w, "took_us", 77);
    mb_write_cstr(w, "hits");
    mb_write_array(w, 2);
    mb_write_map(w, 10);
    mb_write_kv_cstr(w, "id", "7");
    mb_write_kv_uint(w, "segment", 1);
    mb_write_kv_f64(w, "score", 2.5);
    mb_write_kv_f64(w, "dense", 0.5);
    mb_write_kv_f64(w, "lexical", 3.5);
    mb_write_kv_uint(w, "start", 10);
    mb_write_kv_uint(w, "end", 14);
    mb_write_kv_cstr(w, "text", "text");
    mb_write_kv_cstr(w, "title", "T");
    mb_write_cstr(w, "meta");
    mb_write_nil(w);
    mb_write_map(w, 3);
    mb_write_kv_cstr(w, "id", "8");
    mb_write_kv_uint(w, "segment", 0);
    mb_write_kv_f64(w, "score", 1);
}

static void
test_query_sends_options_and_reads_hits(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    // `extra` comes first; the order of a map means nothing.
    exchange(&call, call_query, "query",
        "{\"x\":true,\"collection\":\"notes\",\"mode\":\"dense\","
        "\"text\":\"why\",\"vector\":<0000803f>,\"k\":3,\"filter\":{},"
        "\"fields\":[\"text\"]}",
        query_result);
    assert_int_equal(MEMBANK_OK, call.status);
    struct membank_hits *hits = call.out;
    assert_int_equal(2, membank_hits_count(hits));
    assert_int_equal(77, membank_hits_took_us(hits));
    const struct membank_hit *hit = membank_hits_at(hits, 0);
    assert_string_equal("7", hit->id);
    assert_int_equal(1, hit->segment);
    assert_true(hit->score == 2.5 && hit->dense == 0.5);
    assert_true(hit->lexical == 3.5);
    assert_int_equal(10, hit->start);
    assert_int_equal(14, hit->end);
    assert_string_equal("text", hit->text);
    assert_string_equal("T", hit->title);
    assert_int_equal(0, hit->meta.size);
    hit = membank_hits_at(hits, 1);
    assert_true(isnan(hit->dense));
    assert_null(hit->text);
    assert_null(hit->title);
    assert_null(membank_hits_at(hits, 2));
    membank_hits_free(hits);
}

static void
test_query_leaves_out_what_is_default(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_query_plain, "query",
        "{\"collection\":\"notes\",\"mode\":\"hybrid\",\"text\":\"why\"}",
        query_result);
    assert_int_equal(MEMBANK_OK, call.status);
    membank_hits_free(call.out);
}

static membank_status
call_embed(struct membank *mb, struct call *call)
{
    const char *const texts[] = {"a", "b"};
    struct membank_vectors *v = NULL;
    membank_status st = membank_embed(mb, "notes", texts, 2, &v, &call->err);
    call->out = v;
    return st;
}

static void
embed_result(struct mb_writer *w)
{
    mb_write_map(w, 2);
    mb_write_kv_uint(w, "dim", 2);
    mb_write_cstr(w, "vectors");
    mb_write_array(w, 2);
    mb_write_bin(w, mb_slice_of("\x00\x00\x80\x3f\x00\x00\x00\x00", 8));
    mb_write_bin(w, mb_slice_of("\x00\x00\x00\x00\x00\x00\x80\x3f", 8));
}

static void
test_embed_reads_vectors(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    exchange(&call, call_embed, "embed",
        "{\"collection\":\"notes\",\"texts\":[\"a\",\"b\"]}", embed_result);
    assert_int_equal(MEMBANK_OK, call.status);
    struct membank_vectors *v = call.out;
    assert_int_equal(2, membank_vectors_count(v));
    assert_int_equal(2, membank_vectors_dim(v));
    assert_true(membank_vectors_row(v, 0)[0] == 1.0f);
    assert_true(membank_vectors_row(v, 1)[1] == 1.0f);
    assert_null(membank_vectors_row(v, 2));
    membank_vectors_free(v);
}

/* ---- replies that are not of the protocol ---- */

static void
wrong_hits(struct mb_writer *w)
{
    mb_write_map(w, 1);
    mb_write_cstr(w, "hits");
    mb_write_array(w, 1);
    mb_write_map(w, 1);
    mb_write_kv_uint(w, "id", 7); // not a string
}

static void
wrong_vectors(struct mb_writer *w)
{
    mb_write_map(w, 2);
    mb_write_kv_uint(w, "dim", 3);
    mb_write_cstr(w, "vectors");
    mb_write_array(w, 1);
    mb_write_bin(w, mb_slice_of("1234", 4));
}

static void
wrong_documents(struct mb_writer *w)
{
    mb_write_map(w, 1);
    mb_write_cstr(w, "documents");
    mb_write_array(w, 1);
    mb_write_nil(w);
}

static void
test_result_when_of_wrong_shape_then_bad_message(void **state)
{
    MB_TEST_UNUSED(state);
    struct call call;
    const char *query =
        "{\"collection\":\"notes\",\"mode\":\"hybrid\",\"text\":\"why\"}";
    exchange(&call, call_query_plain, "query", query, wrong_hits);
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, call.status);
    assert_null(call.out);
    exchange(&call, call_query_plain, "query", query, empty_result);
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, call.status);
    exchange(&call, call_query_plain, "query", query, mb_write_nil);
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, call.status);
    exchange(&call, call_embed, "embed",
        "{\"collection\":\"notes\",\"texts\":[\"a\",\"b\"]}", wrong_vectors);
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, call.status);
    exchange(&call, call_list, "list",
        "{\"collection\":\"notes\",\"after\":\"6\",\"limit\":10,"
        "\"filter\":{\"a\":7}}",
        wrong_documents);
    assert_int_equal(MEMBANK_ERR_BAD_MESSAGE, call.status);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ping_reads_the_server),
        cmocka_unit_test(test_ping_without_out_is_fine),
        cmocka_unit_test(test_create_and_drop_send_name_and_settings),
        cmocka_unit_test(test_collections_gives_the_reply_whole),
        cmocka_unit_test(test_stats_names_the_collection_if_there_is_one),
        cmocka_unit_test(test_put_sends_documents_and_reads_counts),
        cmocka_unit_test(test_get_reads_a_document),
        cmocka_unit_test(test_list_reads_documents_without_text),
        cmocka_unit_test(test_delete_by_id_and_by_filter),
        cmocka_unit_test(test_query_sends_options_and_reads_hits),
        cmocka_unit_test(test_query_leaves_out_what_is_default),
        cmocka_unit_test(test_embed_reads_vectors),
        cmocka_unit_test(test_result_when_of_wrong_shape_then_bad_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
