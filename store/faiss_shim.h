/* SPDX-License-Identifier: Apache-2.0
 * store/faiss_shim.h - private to vindex.c and faiss_shim.cpp: the two calls
 * that FAISS's C headers lack. */
#ifndef STORE_FAISS_SHIM_H
#define STORE_FAISS_SHIM_H

#ifdef __cplusplus
extern "C" {
#endif

struct FaissClustering_H;

/* Where training starts: k * d floats, copied. Returns a FaissErrorCode. */
int shim_Clustering_set_centroids(
    struct FaissClustering_H *clustering, const float *x);
/* Of the calling thread: OpenMP keeps that number for each. */
void shim_set_openmp_threads(int n);

#ifdef __cplusplus
}
#endif

#endif
