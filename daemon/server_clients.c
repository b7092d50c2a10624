/* SPDX-License-Identifier: Apache-2.0
 * daemon/server_clients.c - who has something under way, by identity.
 *
 * A hash table with chains. Records of clients that have nothing in flight are
 * swept now and then, so that it does not grow with all that ever came. */
#include "server_clients.h"

#include <string.h>

static bool
client_is_idle(const struct client *c)
{
    // Acquire pairs with the release in free_sent: its last use is over.
    return c->n_requests == 0 &&
           atomic_load_explicit(&c->n_unsent, memory_order_acquire) == 0;
}

struct client *
clients_find(
    struct client_table *t, size_t socket, const void *identity, size_t size)
{
    uint64_t hash = mb_hash64(identity, size, socket);
    struct client **slot = &t->slots[hash % CLIENT_SLOTS];
    struct client *c;

    for (c = *slot; c != NULL; c = c->next) {
        if (c->hash == hash && c->socket == socket &&
            c->identity_size == size &&
            memcmp(c->identity, identity, size) == 0)
            return c;
    }
    c = mb_calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->hash = hash;
    c->socket = socket;
    c->identity_size = size;
    memcpy(c->identity, identity, size);
    c->next = *slot;
    *slot = c;
    (void)atomic_fetch_add_explicit(&t->n, 1, memory_order_relaxed);
    return c;
}

void
clients_sweep(struct client_table *t)
{
    for (size_t i = 0; i < CLIENT_SLOTS; i++) {
        struct client **at = &t->slots[i];

        while (*at != NULL) {
            struct client *c = *at;

            if (client_is_idle(c)) {
                *at = c->next;
                mb_free(c);
                (void)atomic_fetch_sub_explicit(&t->n, 1, memory_order_relaxed);
            } else {
                at = &c->next;
            }
        }
    }
}

void
clients_fini(struct client_table *t)
{
    for (size_t i = 0; i < CLIENT_SLOTS; i++) {
        while (t->slots[i] != NULL) {
            struct client *next = t->slots[i]->next;

            mb_free(t->slots[i]);
            t->slots[i] = next;
        }
    }
}
