/* SPDX-License-Identifier: Apache-2.0
 * model/gguf.h - of GGUF files what only this folder needs. */
#ifndef MB_MODEL_GGUF_H
#define MB_MODEL_GGUF_H

#include "mb_model.h"

/* The value of key i as it stands in the file, from its type on; a view. */
struct mb_slice gguf_raw_value(const struct mb_gguf *gguf, size_t i);

#endif
