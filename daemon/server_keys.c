/* SPDX-License-Identifier: Apache-2.0
 * daemon/server_keys.c - files of CURVE keys: the list of who may come in.
 *
 * A key is 32 bytes in Z85, 40 characters; a file has one a line. Whether a
 * list is good is seen before it is used: one that was cut short or mistyped
 * must not let in others than it seems to.
 * Threads: any; a list has its lock. */
#include "server_keys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_KEYS 4096

/* ---- a file ---- */

/* Does each group of five digits stand for 32 bits? */
static bool
is_z85(const char key[KEY_TEXT + 1])
{
    static const char digits[] =
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        ".-:+=^!/*?&<>()[]{}@%$#";
    uint64_t value = 0;

    for (size_t i = 0; i < KEY_TEXT; i++) {
        const char *at =
            key[i] != 0 ? memchr(digits, key[i], sizeof digits - 1) : NULL;

        if (at == NULL)
            return false;
        value = (i % 5 == 0 ? 0 : value * 85) + (uint64_t)(at - digits);
        if (i % 5 == 4 && value > UINT32_MAX)
            return false;
    }
    return true;
}

/* Next line of a file into `line`, cut to size; the rest of a longer one is
 * passed over, so that it is not taken for a line of its own. */
static bool
next_line(FILE *f, char *line, int size)
{
    int c = 0;

    if (fgets(line, size, f) == NULL)
        return false;
    while (strchr(line, '\n') == NULL && c != '\n' && c != EOF) {
        c = fgetc(f);
    }
    return true;
}

/* Next key of a file, the first word of its line, past blank lines and comments
 * (no key begins with #: five digits of Z85 that do stand for more than 32
 * bits). NOT_FOUND at the end, BAD_ARG for anything else in *number. */
static mb_status
next_key(FILE *f, char key[KEY_TEXT + 1], unsigned *number)
{
    char line[256];

    while (next_line(f, line, sizeof line)) {
        const char *word = line + strspn(line, " \t");
        size_t size = strcspn(word, " \t\r\n");

        *number += 1;
        if (size == 0 || word[0] == '#')
            continue;
        if (size != KEY_TEXT)
            return MB_ERR_BAD_ARG;
        memcpy(key, word, KEY_TEXT);
        key[KEY_TEXT] = 0;
        return is_z85(key) ? MB_OK : MB_ERR_BAD_ARG;
    }
    return ferror(f) != 0 ? MB_ERR_IO : MB_ERR_NOT_FOUND;
}

/* All keys of a file: at least one, at most max. Whatever else is in there is
 * an error: a list must not let in others than it seems to. */
mb_status
keys_read(const char *path, size_t max, char (*keys)[KEY_TEXT + 1], size_t *n,
    struct mb_error *err)
{
    FILE *f = fopen(path, "r");
    char key[KEY_TEXT + 1];
    unsigned number = 0;
    mb_status st = MB_OK;

    if (f == NULL)
        return mb_error_set(
            err, MB_ERR_IO, "open keys %s: %s", path, strerror(errno));
    for (*n = 0; st == MB_OK;) {
        st = next_key(f, key, &number);
        if (st == MB_OK && *n == max)
            st = MB_ERR_TOO_LARGE;
        if (st == MB_OK)
            memcpy(keys[(*n)++], key, sizeof key);
    }
    (void)fclose(f);
    if (st == MB_ERR_NOT_FOUND && *n > 0)
        return MB_OK;
    if (st == MB_ERR_IO)
        return mb_error_set(err, st, "read keys %s", path);
    if (st == MB_ERR_TOO_LARGE)
        return mb_error_set(err, MB_ERR_DENIED,
            "keys %s, line %u: more than %zu", path, number, max);
    return mb_error_set(err, MB_ERR_DENIED,
        "keys %s, line %u: wants Z85 keys of %d characters, one a line", path,
        number, KEY_TEXT);
}

/* ---- the allow list ---- */

void
key_list_init(struct key_list *list)
{
    *list = (struct key_list){0};
    (void)pthread_mutex_init(&list->lock, NULL);
}

void
key_list_fini(struct key_list *list)
{
    mb_free(list->keys);
    (void)pthread_mutex_destroy(&list->lock);
}

mb_status
key_list_read(struct key_list *list, const char *path, struct mb_error *err)
{
    char(*keys)[KEY_TEXT + 1] = mb_calloc(MAX_KEYS, sizeof *keys);
    char(*old)[KEY_TEXT + 1] = NULL;
    size_t n = 0;
    mb_status st;

    if (keys == NULL)
        return mb_error_set(err, MB_ERR_NOMEM, "allow list");
    st = keys_read(path, MAX_KEYS, keys, &n, err);
    if (st == MB_OK) {
        (void)pthread_mutex_lock(&list->lock);
        old = list->keys;
        list->keys = keys;
        list->n = n;
        (void)pthread_mutex_unlock(&list->lock);
        keys = NULL;
    }
    mb_free(keys);
    mb_free(old);
    return st;
}

bool
key_list_has(struct key_list *list, const char *key)
{
    bool has = false;

    (void)pthread_mutex_lock(&list->lock);
    for (size_t i = 0; i < list->n && !has; i++) {
        has = strcmp(list->keys[i], key) == 0;
    }
    (void)pthread_mutex_unlock(&list->lock);
    return has;
}
