/* SPDX-License-Identifier: Apache-2.0
 * model/compute.c - types of tensors, and the choice of kernels. */
#include "compute.h"

#include "compute_x86.h"

/* ---- types ---- */

struct type_facts {
    tensor_type type;
    const char *name;
    size_t values;
    size_t bytes;
};

static const struct type_facts facts[] = {
    {TENSOR_F32, "F32", 1, 4},
    {TENSOR_F16, "F16", 1, 2},
    {TENSOR_BF16, "BF16", 1, 2},
    {TENSOR_Q8_0, "Q8_0", 32, 34},
    {TENSOR_Q5_0, "Q5_0", 32, 22},
    {TENSOR_Q4_0, "Q4_0", 32, 18},
    {TENSOR_Q4_K, "Q4_K", 256, 144},
    {TENSOR_Q6_K, "Q6_K", 256, 210},
};

static const struct type_facts *
find_type(tensor_type type)
{
    for (size_t i = 0; i < sizeof(facts) / sizeof(facts[0]); i++) {
        if (facts[i].type == type)
            return &facts[i];
    }
    return NULL;
}

size_t
tensor_block_values(tensor_type type)
{
    const struct type_facts *f = find_type(type);
    return f ? f->values : 0;
}

size_t
tensor_block_bytes(tensor_type type)
{
    const struct type_facts *f = find_type(type);
    return f ? f->bytes : 0;
}

const char *
tensor_type_name(tensor_type type)
{
    const struct type_facts *f = find_type(type);
    return f ? f->name : "unknown";
}

/* ---- levels ---- */

const struct compute *
compute_at(compute_level level)
{
    switch (level) {
    case COMPUTE_PLAIN:
        return compute_plain();
    case COMPUTE_AVX2:
        return compute_x86_avx2();
    case COMPUTE_AVX512:
        return compute_x86_avx512();
    case COMPUTE_N_LEVELS:
        break;
    }
    return NULL;
}

const struct compute *
compute_best(void)
{
    for (int level = COMPUTE_N_LEVELS - 1; level > COMPUTE_PLAIN; level--) {
        const struct compute *c = compute_at((compute_level)level);
        if (c)
            return c;
    }
    return compute_plain();
}
