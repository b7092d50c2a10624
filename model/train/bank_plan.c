/* SPDX-License-Identifier: Apache-2.0
 * model/train/bank_plan.c - a job's nodes and windows, and their order.
 *
 * Windows are sorted by path and key first, so nothing depends on how the
 * caller listed them. Neighbouring leaves make groups whose blocks fit into the
 * room for states together. An epoch goes through the groups in random order,
 * and through the windows of a group in random order, which is as good as a
 * shuffle of all where all fit. Both orders follow from seed, epoch and group
 * alone, so that any step can be gone to.
 * Threads: one caller at a time. */
#include "bank_train.h"

#include <stdlib.h>
#include <string.h>

/* ---- nodes ---- */

static bool
is_end(uint64_t node)
{
    return node == MB_BANK_NONE || node == MB_BANK_GENERIC;
}

static int
compare_slots(const void *a, const void *b)
{
    const struct bank_slot *x = a;
    const struct bank_slot *y = b;
    if (x->level != y->level)
        return x->level < y->level ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

static int
compare_nodes(const void *a, const void *b)
{
    const struct bank_slot *x = a;
    const struct bank_slot *y = b;
    return x->node < y->node ? -1 : x->node > y->node;
}

static size_t
unique_slots(struct bank_slot *slots, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || compare_slots(&slots[kept - 1], &slots[i]) != 0)
            slots[kept++] = slots[i];
    }
    return kept;
}

/* Nodes of levels that have rows, each once. */
static mb_status
make_slots(struct bank_plan *p, const struct mb_bank_shape *shape,
    bool is_generic, struct mb_error *err)
{
    size_t levels = shape->n_levels;
    p->slots = mb_calloc(p->n_items * levels + 1, sizeof(*p->slots));
    if (!p->slots)
        return mb_error_set(
            err, MB_ERR_NOMEM, "train: %zu windows", p->n_items);
    if (is_generic) {
        p->slots[0] = (struct bank_slot){
            .node = MB_BANK_GENERIC, .rows = mb_bank_path_rows(shape)};
        p->n_slots = 1;
        return MB_OK;
    }
    for (size_t i = 0; i < p->n_items; i++) {
        for (size_t l = 0; l < levels && !is_end(p->items[i].path[l]); l++) {
            if (shape->rows[l] > 0)
                p->slots[p->n_slots++] =
                    (struct bank_slot){.node = p->items[i].path[l],
                        .level = l + 1,
                        .rows = shape->rows[l]};
        }
        /* Windows repeat nodes many times: keep the list short. */
        if (p->n_slots > p->n_items * levels / 2 || i + 1 == p->n_items) {
            qsort(p->slots, p->n_slots, sizeof(*p->slots), compare_slots);
            p->n_slots = unique_slots(p->slots, p->n_slots);
        }
    }
    qsort(p->slots, p->n_slots, sizeof(*p->slots), compare_nodes);
    for (size_t i = 1; i < p->n_slots; i++) {
        if (p->slots[i].node == p->slots[i - 1].node)
            return mb_error_set(err, MB_ERR_BAD_ARG,
                "train: node %llu stands at levels %zu and %zu",
                (unsigned long long)p->slots[i].node, p->slots[i - 1].level,
                p->slots[i].level);
    }
    qsort(p->slots, p->n_slots, sizeof(*p->slots), compare_slots);
    return MB_OK;
}

/* ---- windows ---- */

static int
compare_windows(const void *a, const void *b)
{
    const struct bank_window *x = a;
    const struct bank_window *y = b;
    for (size_t l = 0; l < MB_BANK_MAX_LEVELS; l++) {
        if (x->slots[l] != y->slots[l])
            return x->slots[l] < y->slots[l] ? -1 : 1;
    }
    return x->key < y->key ? -1 : x->key > y->key;
}

static int
compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static mb_status
check_keys(const struct bank_plan *p, struct mb_error *err)
{
    mb_status st = MB_OK;
    uint64_t *keys = mb_alloc(p->n_items * sizeof(*keys));
    if (!keys)
        return mb_error_set(
            err, MB_ERR_NOMEM, "train: %zu windows", p->n_items);
    for (size_t i = 0; i < p->n_items; i++)
        keys[i] = p->items[i].key;
    qsort(keys, p->n_items, sizeof(*keys), compare_keys);
    for (size_t i = 1; i < p->n_items && st == MB_OK; i++) {
        if (keys[i] == keys[i - 1])
            st = mb_error_set(err, MB_ERR_BAD_ARG,
                "train: two windows have the key %llu",
                (unsigned long long)keys[i]);
    }
    mb_free(keys);
    return st;
}

static struct bank_window
window_of(const struct bank_plan *p, const struct mb_bank_shape *shape,
    bool is_generic, size_t i)
{
    const struct mb_bank_item *item = &p->items[i];
    struct bank_window w = {.key = item->key, .item = (uint32_t)i};
    if (is_generic) {
        w.n_blocks = 1;
        return w;
    }
    for (size_t l = 0; l < shape->n_levels && !is_end(item->path[l]); l++) {
        struct bank_slot key = {.node = item->path[l], .level = l + 1};
        const struct bank_slot *s = shape->rows[l] > 0
                                        ? bsearch(&key, p->slots, p->n_slots,
                                              sizeof(*p->slots), compare_slots)
                                        : NULL;
        if (s)
            w.slots[w.n_blocks++] = (uint32_t)(s - p->slots);
    }
    return w;
}

static mb_status
make_windows(struct bank_plan *p, const struct mb_bank_shape *shape,
    bool is_generic, struct mb_error *err)
{
    p->windows = mb_calloc(p->n_items, sizeof(*p->windows));
    p->held_out = mb_calloc(p->n_items, sizeof(*p->held_out));
    p->order = mb_calloc(p->n_items, sizeof(*p->order));
    if (!p->windows || !p->held_out || !p->order)
        return mb_error_set(
            err, MB_ERR_NOMEM, "train: %zu windows", p->n_items);
    for (size_t i = 0; i < p->n_items; i++) {
        struct bank_window w = window_of(p, shape, is_generic, i);
        if (w.n_blocks == 0)
            continue;
        if (p->items[i].is_held_out)
            p->held_out[p->n_held_out++] = w;
        else
            p->windows[p->n_windows++] = w;
    }
    if (p->n_windows == 0)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "train: no windows to train on");
    qsort(p->windows, p->n_windows, sizeof(*p->windows), compare_windows);
    qsort(p->held_out, p->n_held_out, sizeof(*p->held_out), compare_windows);
    return MB_OK;
}

/* ---- groups ---- */

/* Bytes of states that window i adds to those of the window before it. */
static size_t
bytes_added(const struct bank_plan *p, const struct mb_bank_shape *shape,
    size_t i, bool is_first)
{
    const struct bank_window *w = &p->windows[i];
    size_t bytes = 0;
    for (size_t l = 0; l < w->n_blocks; l++) {
        if (is_first || l >= w[-1].n_blocks || w->slots[l] != w[-1].slots[l])
            bytes += bank_state_bytes(shape, p->slots[w->slots[l]].rows);
    }
    return bytes;
}

static mb_status
make_groups(struct bank_plan *p, const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *o, struct mb_error *err)
{
    size_t bytes = 0;
    p->groups = mb_calloc(p->n_windows, sizeof(*p->groups));
    if (!p->groups)
        return mb_error_set(err, MB_ERR_NOMEM, "train: groups of leaves");
    for (size_t i = 0; i < p->n_windows; i++) {
        size_t more = bytes_added(p, shape, i, p->n_groups == 0);
        if (p->n_groups == 0 || bytes + more > o->resident_bytes) {
            /* A leaf alone may be more than there should be room for. */
            if (p->n_groups == 0 || more > 0) {
                p->groups[p->n_groups++].first = i;
                bytes = 0;
                more = bytes_added(p, shape, i, true);
            }
        }
        bytes += more;
        p->groups[p->n_groups - 1].n++;
    }
    p->group_order = mb_calloc(p->n_groups, sizeof(*p->group_order));
    if (!p->group_order)
        return mb_error_set(err, MB_ERR_NOMEM, "train: groups of leaves");
    for (size_t g = 0; g < p->n_groups; g++)
        p->steps_an_epoch += (p->groups[g].n + o->batch - 1) / o->batch;
    return MB_OK;
}

/* ---- the whole ---- */

/* What a job is: all that its result depends on, but the states and texts. */
static uint64_t
hash_of(const struct bank_plan *p, const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *o)
{
    const double reals[] = {o->rate, o->warmup, o->final_rate, o->beta1,
        o->beta2, o->adam_eps, o->decay};
    const uint64_t numbers[] = {o->seed, o->epochs, o->batch, o->n_ctx,
        o->resident_bytes, o->is_generic, shape->d_model, shape->first_layer,
        shape->n_layers, shape->n_levels};
    uint64_t h = mb_hash64(reals, sizeof(reals), 0);
    h = mb_hash64(numbers, sizeof(numbers), h);
    h = mb_hash64(shape->rows, shape->n_levels * sizeof(shape->rows[0]), h);
    for (size_t i = 0; i < p->n_windows; i++) {
        const struct bank_window *w = &p->windows[i];
        h = mb_hash64(&w->key, sizeof(w->key), h);
        for (size_t l = 0; l < w->n_blocks; l++)
            h = mb_hash64(&p->slots[w->slots[l]].node, sizeof(uint64_t), h);
    }
    return h;
}

mb_status
bank_plan_make(const struct mb_bank_shape *shape,
    const struct mb_bank_train_options *o, const struct mb_bank_item *items,
    size_t n, struct bank_plan *out, struct mb_error *err)
{
    struct bank_plan p = {.n_items = n};
    if (n == 0 || n > UINT32_MAX)
        return mb_error_set(
            err, MB_ERR_BAD_ARG, "train: no job of %zu windows", n);
    p.items = mb_alloc(n * sizeof(*items));
    if (!p.items)
        return mb_error_set(err, MB_ERR_NOMEM, "train: %zu windows", n);
    memcpy(p.items, items, n * sizeof(*items));
    mb_status st = check_keys(&p, err);
    if (st == MB_OK)
        st = make_slots(&p, shape, o->is_generic, err);
    if (st == MB_OK)
        st = make_windows(&p, shape, o->is_generic, err);
    if (st == MB_OK)
        st = make_groups(&p, shape, o, err);
    if (st != MB_OK) {
        bank_plan_fini(&p);
        return st;
    }
    p.hash = hash_of(&p, shape, o);
    *out = p;
    return MB_OK;
}

void
bank_plan_fini(struct bank_plan *p)
{
    for (size_t i = 0; p->slots && i < p->n_slots; i++)
        bank_slot_drop(&p->slots[i]);
    mb_free(p->items);
    mb_free(p->slots);
    mb_free(p->windows);
    mb_free(p->held_out);
    mb_free(p->groups);
    mb_free(p->group_order);
    mb_free(p->order);
    *p = (struct bank_plan){0};
}

/* ---- order ---- */

static struct mb_rng
stream_of(uint64_t seed, uint64_t epoch, uint64_t group)
{
    const uint64_t key[] = {seed, epoch, group};
    struct mb_rng rng;
    mb_rng_init(&rng, mb_hash64(key, sizeof(key), 0));
    return rng;
}

static void
begin_epoch(struct bank_plan *p, uint64_t seed)
{
    struct mb_rng rng = stream_of(seed, p->epoch, UINT64_MAX);
    for (size_t i = 0; i < p->n_groups; i++)
        p->group_order[i] = i;
    for (size_t i = p->n_groups; i > 1; i--) {
        size_t j = (size_t)mb_rng_below(&rng, i);
        size_t kept = p->group_order[i - 1];
        p->group_order[i - 1] = p->group_order[j];
        p->group_order[j] = kept;
    }
}

static void
begin_group(struct bank_plan *p, uint64_t seed)
{
    size_t g = p->group_order[p->group_place];
    struct mb_rng rng = stream_of(seed, p->epoch, g);
    size_t n = p->groups[g].n;
    for (size_t i = 0; i < n; i++)
        p->order[i] = (uint32_t)(p->groups[g].first + i);
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)mb_rng_below(&rng, i);
        uint32_t kept = p->order[i - 1];
        p->order[i - 1] = p->order[j];
        p->order[j] = kept;
    }
}

void
bank_plan_seek(
    struct bank_plan *p, const struct mb_bank_train_options *o, uint64_t step)
{
    p->epoch = step / p->steps_an_epoch;
    size_t left = (size_t)(step % p->steps_an_epoch);
    begin_epoch(p, o->seed);
    for (p->group_place = 0; p->group_place < p->n_groups; p->group_place++) {
        size_t n = p->groups[p->group_order[p->group_place]].n;
        size_t steps = (n + o->batch - 1) / o->batch;
        if (left < steps)
            break;
        left -= steps;
    }
    p->step_in_group = left;
    begin_group(p, o->seed);
}

size_t
bank_plan_next(struct bank_plan *p, const struct mb_bank_train_options *o,
    struct bank_window *out, bool *is_new)
{
    size_t n = p->groups[p->group_order[p->group_place]].n;
    size_t first = p->step_in_group * o->batch;
    if (first >= n) { // the next group
        if (++p->group_place == p->n_groups) {
            p->epoch++;
            p->group_place = 0;
            begin_epoch(p, o->seed);
        }
        begin_group(p, o->seed);
        n = p->groups[p->group_order[p->group_place]].n;
        first = p->step_in_group = 0;
    }
    *is_new = first == 0;
    size_t take = n - first < o->batch ? n - first : o->batch;
    for (size_t i = 0; i < take; i++)
        out[i] = p->windows[p->order[first + i]];
    p->step_in_group++;
    qsort(out, take, sizeof(*out), compare_windows);
    return take;
}
