/* SPDX-License-Identifier: Apache-2.0
 * model/compute_x86.c - which levels this CPU has. */
#include "compute_x86.h"

const struct compute *
compute_x86_avx2(void)
{
    return NULL;
}

const struct compute *
compute_x86_avx512(void)
{
    return NULL;
}
