/* SPDX-License-Identifier: Apache-2.0
 * tests/support/mb_test_thread.h - checks in threads that a test starts.
 *
 * cmocka's asserts jump out of the test, so they are for the main thread. The
 * others keep what they find wrong, and the main thread looks after the join:
 *
 *     CHECK(&r->why, st == MB_OK, "%s", err.text);    // in the thread
 *     assert_string_equal("", r->why.text);           // after it
 *
 * Include after mb_test.h. Threads: a struct why belongs to one at a time. */
#ifndef MB_TEST_THREAD_H
#define MB_TEST_THREAD_H

#include "mb_test.h"

/* What went wrong in a thread; empty if nothing. */
struct why {
    char text[512];
};

MB_PRINTF(4, 5)

static inline void
why_set(struct why *why, int line, const char *condition, const char *fmt, ...)
{
    va_list args;
    int n =
        snprintf(why->text, sizeof why->text, "line %d: %s: ", line, condition);
    if (n < 0 || (size_t)n >= sizeof why->text)
        return;
    va_start(args, fmt);
    (void)vsnprintf(why->text + n, sizeof why->text - (size_t)n, fmt, args);
    va_end(args);
}

/* Note it and return false from the function around, if it does not hold. */
#define CHECK(why, condition, ...)                                             \
    do {                                                                       \
        if (!(condition)) {                                                    \
            why_set((why), __LINE__, #condition, __VA_ARGS__);                 \
            return false;                                                      \
        }                                                                      \
    } while (0)

#endif
