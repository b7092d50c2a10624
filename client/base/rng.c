/* SPDX-License-Identifier: Apache-2.0
 * client/base/rng.c - random numbers that can be had again.
 *
 * xoshiro256** 1.0 (Blackman and Vigna 2018), its state filled by splitmix64
 * so that any seed will do, zero included. Integers and doubles are the same
 * on every machine; normals go through libm and may differ in the last bit.
 * Threads: one at a time for each generator. */
#include "mb_base.h"

#include <math.h>

static uint64_t
rotate_left(uint64_t x, unsigned k)
{
    return (x << k) | (x >> (64 - k));
}

static uint64_t
splitmix64(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void
mb_rng_init(struct mb_rng *rng, uint64_t seed)
{
    for (size_t i = 0; i < 4; i++)
        rng->s[i] = splitmix64(&seed);
}

uint64_t
mb_rng_u64(struct mb_rng *rng)
{
    uint64_t *s = rng->s;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t
mb_rng_below(struct mb_rng *rng, uint64_t n)
{
    MB_ASSERT(n > 0);
    // Numbers below 2^64 mod n would favour the small residues: draw again.
    uint64_t reject = (UINT64_MAX - n + 1) % n;
    uint64_t r;
    do {
        r = mb_rng_u64(rng);
    } while (r < reject);
    return r % n;
}

double
mb_rng_double(struct mb_rng *rng)
{
    return (double)(mb_rng_u64(rng) >> 11) * 0x1p-53;
}

double
mb_rng_normal(struct mb_rng *rng)
{
    // Box and Muller 1958; 1 - u keeps the logarithm away from zero.
    double radius = sqrt(-2.0 * log(1.0 - mb_rng_double(rng)));
    return radius * cos(6.283185307179586 * mb_rng_double(rng));
}
