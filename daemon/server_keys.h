/* SPDX-License-Identifier: Apache-2.0
 * daemon/server_keys.h - files of CURVE keys: the list of who may come in.
 * Life of a list: key_list_init -> key_list_read, key_list_has -> _fini. */
#ifndef DAEMON_SERVER_KEYS_H
#define DAEMON_SERVER_KEYS_H

#include <pthread.h>

#include "mb_base.h"

#define KEY_TEXT 40 /* Z85 digits of a CURVE key */

/* All keys of a file into keys (max): at least one. Whatever else is in there
 * is an error. *n counts them. Errors: DENIED (not a list of keys), IO. */
MB_MUST_USE mb_status keys_read(const char *path, size_t max,
    char (*keys)[KEY_TEXT + 1], size_t *n, struct mb_error *err);

struct key_list {
    pthread_mutex_t lock; /* guards what follows */
    char (*keys)[KEY_TEXT + 1];
    size_t n;
};

void key_list_init(struct key_list *list);
void key_list_fini(struct key_list *list);
/* Put a file's keys in the place of those it has; a bad file changes nothing.
 * Errors: DENIED, IO, NOMEM. */
MB_MUST_USE mb_status key_list_read(
    struct key_list *list, const char *path, struct mb_error *err);
bool key_list_has(struct key_list *list, const char *key);

#endif
