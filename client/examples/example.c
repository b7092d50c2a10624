/* SPDX-License-Identifier: Apache-2.0
 * client/examples/example.c - two notes go in, an answer comes out.
 *
 *     cc example.c $(pkg-config --cflags --libs membank) -o example
 *     ./example [ENDPOINT]
 */
#include <stdio.h>

#include <membank.h>

static membank_status
store(struct membank *mb, struct membank_error *err)
{
    const struct membank_field fields[] = {
        {"year", MEMBANK_FIELD_INT, {.i = 2024}},
        {"topic", MEMBANK_FIELD_STR, {.s = "kitchen"}},
    };
    const struct membank_document notes[] = {
        {.id = "tea",
            .text = "Green tea tastes best at seventy degrees.",
            .fields = fields,
            .n_fields = 2},
        {.id = "bike", .text = "The bicycle's key lies behind the clock."},
    };
    return membank_put(mb, "example", notes, 2, NULL, NULL, err);
}

static membank_status
ask(struct membank *mb, const char *question, struct membank_error *err)
{
    struct membank_hits *hits = NULL;
    const struct membank_query_options query = {
        .collection = "example", .text = question, .k = 1};
    membank_status st = membank_query(mb, &query, &hits, err);
    for (size_t i = 0; i < membank_hits_count(hits); i++)
        printf("%s\n  %s\n", question, membank_hits_at(hits, i)->text);
    membank_hits_free(hits);
    return st;
}

int
main(int argc, char **argv)
{
    struct membank *mb = NULL;
    struct membank_error err;
    const struct membank_options opt = {.endpoint = argc > 1 ? argv[1] : NULL};
    const struct membank_create_options create = {.exist_ok = true};
    membank_status st = membank_open(&opt, &mb, &err);
    if (st == MEMBANK_OK)
        st = membank_create(mb, "example", &create, &err);
    if (st == MEMBANK_OK)
        st = store(mb, &err);
    if (st == MEMBANK_OK)
        st = ask(mb, "Where is the key of the bicycle?", &err);
    membank_close(mb);
    if (st != MEMBANK_OK)
        fprintf(stderr, "example: %s\n", err.text);
    return st == MEMBANK_OK ? 0 : 1;
}
