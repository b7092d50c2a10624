/* SPDX-License-Identifier: Apache-2.0
 * client/base/half.c - IEEE 754 binary16, without help of the CPU: kernels that
 * have F16C are tested against this. */
#include "mb_base.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

float
mb_half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    uint32_t bits;
    float out;

    if (exponent == 0x1fu) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        float tiny = (float)mantissa * 0x1p-24f; // subnormal, or zero

        memcpy(&bits, &tiny, sizeof(bits));
        bits |= sign;
    }
    memcpy(&out, &bits, sizeof(out));
    return out;
}

/* Shift right by n in [1, 31], rounding to nearest, ties to even. */
static uint32_t
shift_round_even(uint32_t v, unsigned n)
{
    uint32_t kept = v >> n;
    uint32_t rest = v & ((1u << n) - 1);
    uint32_t half = 1u << (n - 1);

    return kept + ((rest > half || (rest == half && (kept & 1u) != 0)) ? 1 : 0);
}

uint16_t
mb_half_from_float(float f)
{
    uint32_t bits;
    uint32_t sign;
    uint32_t rest;

    memcpy(&bits, &f, sizeof(bits));
    sign = bits >> 16 & 0x8000u;
    rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x3ffu)); // NaN
    }
    if (rest >= 0x477ff000u) {
        return (uint16_t)(sign | 0x7c00u); // rounds past the largest: infinity
    }
    if (rest < 0x33000000u) {
        return (uint16_t)sign; // below half the smallest subnormal
    }
    if (rest < 0x38800000u) { // subnormal in fp16
        uint32_t mantissa = (rest & 0x7fffffu) | 0x800000u;
        unsigned shift = 126 - (rest >> 23);

        return (uint16_t)(sign | shift_round_even(mantissa, shift));
    }
    return (uint16_t)(sign | shift_round_even(rest - 0x38000000u, 13));
}

bool
mb_cpu_has_f16c(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    /* CPUID itself: clang 14 does not take "f16c" in __builtin_cpu_supports. */
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
#else
    return false;
#endif
}
