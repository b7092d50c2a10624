/* SPDX-License-Identifier: Apache-2.0
 * daemon/call.h - one request from its arrival to its reply.
 *
 * Life: commands.c makes it, a handler fills it, call_finish replies and frees
 * it. A handler either returns with its result written, or hands the call to
 * whoever will call call_finish later.
 * Threads: in the hands of one at a time. */
#ifndef DAEMON_CALL_H
#define DAEMON_CALL_H

#include "daemon.h"
#include "mb_wire.h"

#define CALL_MAX_ID    256                 /* bytes of an id, packed */
#define CALL_MAX_REPLY ((size_t)256 << 20) /* bytes */

struct batch;
struct command;

/* What the model was asked on the way of a call, which then began again: texts
 * by a key of the asker's choice, in any order. */
struct call_answers {
    struct batch *batch; /* NULL: not asked */
    uint64_t *keys;      /* (batch_size) */
};

struct call {
    struct daemon *d;
    struct server_request *rq;
    const struct command *command; /* NULL until known */
    uint64_t deadline_ns;          /* 0: none */
    struct mb_buffer reply;
    struct mb_writer w; /* writes reply */
    size_t id_size;
    uint8_t id[CALL_MAX_ID];
    /* While the handler runs; views of the message and of arena. */
    const struct mb_value *args;
    struct mb_arena *arena;
    struct mb_error err;
    struct call_answers vectors; /* of questions, by hash64 of their text */
    struct call_answers scores;  /* of passages, by segno */
    /* Handed over: for whoever finishes it. */
    void (*write_result)(struct call *c, const struct mb_op *op);
    struct dispatch_task task; /* to look whether a put is searchable */
    char collection[MB_MAX_COLLECTION_NAME + 1]; /* that it waits for */
    mb_collection_id collection_id;
    bool is_barrier;   /* it waits until no refit is due */
    struct call *next; /* in a list of those that wait */
};

/* Begin the reply {"v":1,"id":...,"ok":true,"result":; the handler writes one
 * value to c->w after it. Called before each handler; call it again to start
 * over. */
void call_begin(struct call *c);
/* Reply and free c: the result written since call_begin if st is OK, else an
 * error with err's text. */
void call_finish(struct call *c, mb_status st, const struct mb_error *err);
/* A part of a stream, before the reply: write {"v":1,"id":...,"ok":true,
 * "more":true,"result": ; then one value to c->w, then send. False: the client
 * is lost, see server_lost. */
void call_begin_part(struct call *c);
bool call_send_part(struct call *c);
/* When the model is to stop working for c: at its own deadline, or when
 * model_timeout has passed. A client that has gone is not noticed sooner. */
uint64_t call_model_deadline(const struct call *c);
/* Let the model work on answers->batch (made by the handler, with keys), then
 * run the handler again. The call is handed over by it: nothing of it may be
 * touched after. */
void call_ask(struct call *c, struct call_answers *answers);
/* Run the handler of a call that was handed over once more, on a worker. */
void call_again(struct call *c);
/* Where key stands in answers; SIZE_MAX if nowhere. */
size_t call_answer(const struct call_answers *answers, uint64_t key);
/* Submit op for a call that is handed over; c->write_result writes the reply.
 * On failure the caller still has both. */
MB_MUST_USE mb_status call_submit(struct call *c, struct mb_op *op);

#endif
