/* SPDX-License-Identifier: Apache-2.0
 * store/scan_x86.h - private to scan*.c: kernels for x86-64. */
#ifndef STORE_SCAN_X86_H
#define STORE_SCAN_X86_H

#include "scan.h"

/* NULL where the CPU, or this build, has them not. */
const struct scan_kernels *scan_x86_avx2(void);
const struct scan_kernels *scan_x86_avx512(void);

#endif
