/* SPDX-License-Identifier: Apache-2.0
 * model/attention_x86.h - attention kernels of x86-64 beyond the baseline. */
#ifndef MB_MODEL_ATTENTION_X86_H
#define MB_MODEL_ATTENTION_X86_H

#include "attention.h"

/* NULL if this CPU or build has it not. */
const struct attention *attention_x86_at(compute_level level);

#endif
