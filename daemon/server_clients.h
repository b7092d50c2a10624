/* SPDX-License-Identifier: Apache-2.0
 * daemon/server_clients.h - who has something under way, by identity.
 * Zero is an empty table; clients_fini ends it.
 * Threads: mb-io, but for the counts of what is unsent (server.c: free_sent)
 * and `n`, which any may read. */
#ifndef DAEMON_SERVER_CLIENTS_H
#define DAEMON_SERVER_CLIENTS_H

#include <stdatomic.h>

#include "mb_base.h"

#define MAX_IDENTITY 255
#define CLIENT_SLOTS 1024 /* of the hash table; chains may grow */

struct client {
    struct client *next; /* in its slot */
    uint64_t hash;
    size_t socket;
    uint64_t n_requests;           /* taken in, not sent yet; mb-io */
    atomic_uint_fast64_t n_unsent; /* sent, not gone yet; see free_sent */
    atomic_uint_fast64_t unsent_bytes;
    size_t identity_size;
    uint8_t identity[MAX_IDENTITY];
};

struct client_table {
    struct client *slots[CLIENT_SLOTS];
    atomic_uint_fast64_t n; /* relaxed */
};

/* The record of a client, made if it has none. NULL when memory is short. */
struct client *clients_find(
    struct client_table *t, size_t socket, const void *identity, size_t size);
/* Forget clients that have nothing under way. */
void clients_sweep(struct client_table *t);
void clients_fini(struct client_table *t);

#endif
