/* SPDX-License-Identifier: Apache-2.0
 * model/train/real.h - one source for two precisions.
 *
 * The tape is written once for the type `real` and compiled twice: in float
 * with BLAS and vector instructions, which is what trains, and in double with
 * plain loops, which is its twin: finite differences in double show that the
 * gradients are right, and the fast version is compared with it. A file that
 * includes this defines TRAIN_DOUBLE or does not; TRAIN(name) is the name of
 * that version. No guard: a test may include the tape's headers both ways. */
#undef real
#undef TRAIN
#ifdef TRAIN_DOUBLE
#define real        double
#define TRAIN(name) name##_f64
#else
#define real        float
#define TRAIN(name) name##_f32
#endif
