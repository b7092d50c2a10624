/* SPDX-License-Identifier: Apache-2.0
 * daemon/contexts.c - which contexts are open, and who owns them.
 *
 * A list, as long as there are contexts in use or kept open: tens, not
 * thousands. Owning is a flag under the table's lock, not a lock of its own:
 * whoever finds a context owned leaves his call with it and goes to do something
 * else; all such calls begin again when the owner leaves.
 * Invariants: an entry that nobody owns has no parked calls; one without a
 * model's object and without an owner is taken off the list.
 * Threads: `lock` guards the list and the fields that context_open.h says. */
#include <string.h>

#include "context_open.h"

#define MAX_RUN_BYTES ((size_t)1 << 24)

struct contexts *
contexts_new(struct daemon *d)
{
    struct contexts *cs = mb_calloc(1, sizeof *cs);

    if (cs == NULL)
        return NULL;
    cs->d = d;
    (void)pthread_mutex_init(&cs->lock, NULL);
    return cs;
}

static void
entry_free(struct open_context *oc)
{
    context_unload(oc);
    mb_buffer_fini(&oc->runs);
    (void)pthread_mutex_destroy(&oc->lock);
    (void)pthread_cond_destroy(&oc->wake);
    mb_free(oc);
}

void
contexts_free(struct contexts *cs)
{
    if (cs == NULL)
        return;
    while (cs->list != NULL) {
        struct open_context *next = cs->list->next;

        entry_free(cs->list);
        cs->list = next;
    }
    (void)pthread_mutex_destroy(&cs->lock);
    mb_free(cs);
}

static uint64_t
max_bytes(const struct contexts *cs)
{
    return daemon_config(cs->d)->context_memory;
}

void
contexts_stats(struct contexts *cs, struct contexts_stats *out)
{
    memset(out, 0, sizeof *out);
    out->max_bytes = max_bytes(cs);
    (void)pthread_mutex_lock(&cs->lock);
    for (const struct open_context *oc = cs->list; oc != NULL; oc = oc->next) {
        out->n_open += oc->bytes > 0;
        out->bytes += oc->bytes;
    }
    out->n_opened = cs->n_opened;
    out->n_closed = cs->n_closed;
    (void)pthread_mutex_unlock(&cs->lock);
}

/* ---- entering ---- */

static struct open_context *
entry_new(struct contexts *cs, struct mb_slice name)
{
    struct open_context *oc = mb_calloc(1, sizeof *oc);

    if (oc == NULL)
        return NULL;
    oc->cs = cs;
    oc->carry = MB_CONTEXT_NO_TOKEN;
    oc->name_size =
        name.size <= MB_MAX_CONTEXT_NAME ? name.size : MB_MAX_CONTEXT_NAME;
    if (oc->name_size > 0)
        memcpy(oc->name, name.data, oc->name_size);
    oc->pending_end = &oc->pending;
    mb_buffer_init(&oc->runs, MAX_RUN_BYTES);
    (void)pthread_mutex_init(&oc->lock, NULL);
    (void)pthread_cond_init(&oc->wake, NULL);
    return oc;
}

static void
park(struct open_context *oc, struct call *c)
{
    struct call **end = &oc->parked;

    while (*end != NULL) {
        end = &(*end)->next;
    }
    c->next = NULL;
    *end = c;
}

mb_status
contexts_enter(struct contexts *cs, struct call *c, struct mb_slice name,
    struct open_context **out, bool *parked)
{
    struct open_context *oc;
    mb_status st = MB_OK;

    *parked = false;
    if (name.size == 0 || name.size > MB_MAX_CONTEXT_NAME)
        return mb_error_set(&c->err, MB_ERR_BAD_ARG,
            "name has %zu bytes, must have 1 to %d", name.size,
            MB_MAX_CONTEXT_NAME);
    (void)pthread_mutex_lock(&cs->lock);
    for (oc = cs->list; oc != NULL; oc = oc->next) {
        if (mb_slice_equal(name, mb_slice_of(oc->name, oc->name_size)))
            break;
    }
    if (oc == NULL) {
        oc = entry_new(cs, name);
        if (oc != NULL) {
            oc->next = cs->list;
            cs->list = oc;
        }
    }
    if (oc == NULL) {
        st = mb_error_set(&c->err, MB_ERR_NOMEM, "context");
    } else if (oc->owned) {
        *parked = true;
        park(oc, c);
    } else {
        oc->owned = true;
        *out = oc;
    }
    (void)pthread_mutex_unlock(&cs->lock);
    return st;
}

/* ---- leaving ---- */

/* Under the lock: memory of all. */
static uint64_t
total_bytes(const struct contexts *cs)
{
    uint64_t total = 0;

    for (const struct open_context *oc = cs->list; oc != NULL; oc = oc->next) {
        total += oc->bytes;
    }
    return total;
}

/* Under the lock: take off the list the one that was used least recently, if
 * the open ones have too much memory; else any that is not open. */
static struct open_context *
take_surplus(struct contexts *cs)
{
    struct open_context **oldest = NULL;
    bool is_too_much = total_bytes(cs) > max_bytes(cs);

    for (struct open_context **at = &cs->list; *at != NULL; at = &(*at)->next) {
        struct open_context *oc = *at;

        if (oc->owned)
            continue;
        if (oc->bytes == 0) {
            oldest = at;
            is_too_much = true;
            break;
        }
        if (oldest == NULL || oc->last_use < (*oldest)->last_use)
            oldest = at;
    }
    if (oldest == NULL || !is_too_much)
        return NULL;
    struct open_context *oc = *oldest;
    cs->n_closed += oc->bytes > 0;
    *oldest = oc->next;
    return oc;
}

/* Under the lock, which it lets go of now and then. */
static void
close_surplus(struct contexts *cs)
{
    for (struct open_context *surplus = take_surplus(cs); surplus != NULL;
         surplus = take_surplus(cs)) {
        (void)pthread_mutex_unlock(&cs->lock);
        entry_free(surplus);
        (void)pthread_mutex_lock(&cs->lock);
    }
}

mb_status
contexts_make_room(struct open_context *oc, size_t bytes, struct mb_error *err)
{
    struct contexts *cs = oc->cs;
    uint64_t total;
    bool fits;

    (void)pthread_mutex_lock(&cs->lock);
    oc->bytes = bytes;
    close_surplus(cs);
    total = total_bytes(cs);
    fits = total <= max_bytes(cs) || total == bytes;
    cs->n_opened += fits;
    if (!fits)
        oc->bytes = 0;
    (void)pthread_mutex_unlock(&cs->lock);
    if (fits)
        return MB_OK;
    return mb_error_set(err, MB_ERR_BUSY,
        "context \"%s\" takes %zu KiB of memory, others in use have %llu of "
        "the %llu KiB of context_memory: try again, or raise it",
        oc->name, bytes >> 10, (unsigned long long)(total - bytes) >> 10,
        (unsigned long long)max_bytes(cs) >> 10);
}

void
contexts_leave(struct open_context *oc)
{
    struct contexts *cs = oc->cs;
    struct call *parked;
    size_t bytes = oc->model != NULL ? mb_context_bytes(oc->model) : 0;

    (void)pthread_mutex_lock(&cs->lock);
    oc->bytes = bytes;
    oc->last_use = ++cs->n_uses;
    oc->owned = false;
    parked = oc->parked;
    oc->parked = NULL;
    close_surplus(cs);
    (void)pthread_mutex_unlock(&cs->lock);
    while (parked != NULL) {
        struct call *next = parked->next;

        call_again(parked);
        parked = next;
    }
}
